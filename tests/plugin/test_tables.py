"""The worker's side of tables that the server makes and removes."""

import numpy as np

from cdserve.plugin.tables import Tables
from cdserve.value_table import ValueTable

ONE = np.ones((1, 1), np.float32)


def test_values_for_a_table_that_was_removed_are_dropped() -> None:
    tables = Tables(columns=1)
    kept, removed = (ValueTable(slots=1, columns=1) for _ in range(2))
    tickets = [removed.acquire(), kept.acquire()]
    removed.close()
    tables.write(tickets, [3, 3], np.concatenate([ONE, ONE]))
    found = kept.read(tickets[1], 3)
    assert found is not None
    assert found.tolist() == [1.0]
    assert tables.read(tickets[0], 3) is None
    kept.close()


def test_a_table_that_is_removed_after_its_first_values_takes_more() -> None:
    tables, table = Tables(columns=1), ValueTable(slots=1, columns=1)
    ticket = table.acquire()
    tables.write([ticket], [3], ONE)
    table.close()
    tables.write([ticket], [4], ONE)
    found = tables.read(ticket, 4)
    assert found is not None
    assert found.tolist() == [1.0]
