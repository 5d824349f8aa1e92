"""The worker's side of tables that the server makes and removes."""

import numpy as np

from cdserve.shared_table import SharedTable, Ticket
from cdserve.worker.tables import Tables, read
from cdserve.worker.tickets import TABLE_IDS, Destinations, TableIds, Tickets

ONE = np.ones((1, 1), np.float32)


def destinations(*tickets: Ticket | None) -> Destinations:
    of_slots = Tickets(len(tickets))
    for slot, ticket in enumerate(tickets):
        of_slots.assign(slot, ticket)
    return of_slots.of(np.arange(len(tickets)))


def test_values_for_a_removed_table_are_dropped() -> None:
    tables = Tables(columns=1)
    kept, removed = (SharedTable(slots=1, columns=1) for _ in range(2))
    tickets = [removed.acquire(), kept.acquire()]
    removed.close()
    tables.write(
        destinations(None, *tickets), np.array([3, 3, 3]), np.array([[0], [1], [2]], np.float32)
    )
    found = kept.read(tickets[1], 3)
    assert found is not None
    assert found.tolist() == [2.0]
    assert read(tickets[0], 1, 3) is None
    kept.close()


def test_table_removed_after_its_first_values_accepts_more() -> None:
    tables, table = Tables(columns=1), SharedTable(slots=1, columns=1)
    ticket = table.acquire()
    place = destinations(ticket)
    tables.write(place, np.array([3]), ONE)
    table.close()
    tables.write(place, np.array([4]), 2 * ONE)
    found = table.read(ticket, 4)
    assert found is not None
    assert found.tolist() == [2.0]


def test_late_results_reach_their_table_after_the_slot_was_reused() -> None:
    """Every text has a table of its own; a step's results come after the next requests."""
    tables, table = Tables(columns=1), SharedTable(slots=1, columns=1)
    slots, ticket = Tickets(1), table.acquire()
    slots.assign(0, ticket)
    place = slots.of(np.array([0]))
    for other in range(2000):
        slots.assign(0, Ticket(f"/other/{other}", other, 0, 1))
    tables.write(place, np.array([3]), ONE)
    assert table.read(ticket, 3) is not None
    table.close()


def test_table_ids_without_holders_are_dropped_eventually() -> None:
    ids = TableIds()
    kept = ids.hold("/kept")
    numbers = []
    for i in range(200_000):
        numbers.append(ids.hold(f"/{i}"))
        ids.release(numbers[-1])
    assert ids[kept] == "/kept"
    assert ids[numbers[-1]] == "/199999"
    assert len(set(numbers)) == len(numbers)
    assert len(ids) < 100_000
    assert TABLE_IDS is not ids
