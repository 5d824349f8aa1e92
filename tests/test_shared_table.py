"""The shared table: a prefix reads the values written for it, or none."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdserve.shared_table import SharedTable, TablePool, TableView, Ticket
from tests.waiting import HANG_SECONDS

SLOTS, LENGTH, COLUMNS = 3, 4, 2


@pytest.fixture
def table() -> Iterator[SharedTable]:
    table = SharedTable(slots=SLOTS, length=LENGTH, columns=COLUMNS)
    yield table
    table.close()


@pytest.fixture
def worker(table: SharedTable) -> TableView:
    """The worker's view of the table."""
    return TableView.open(table.path, COLUMNS)


def write(view: TableView, ticket: Ticket, length: int, *values: float) -> None:
    view.write(
        np.array([ticket.offset + length % ticket.length]),
        np.array([ticket.number]),
        np.array([length]),
        np.array([values], dtype=np.float32),
    )


def read(table: SharedTable, ticket: Ticket, length: int) -> list[float] | None:
    values = table.read(ticket, length)
    return None if values is None else values.tolist()


class TestTickets:
    def test_tickets_share_no_rows(self, table: SharedTable) -> None:
        tickets = [table.acquire() for _ in range(SLOTS)]
        rows = [row for t in tickets for row in range(t.offset, t.offset + t.length)]
        assert sorted(rows) == list(range(SLOTS * LENGTH))

    def test_ticket_numbers_are_unique(self, table: SharedTable) -> None:
        numbers = []
        for _ in range(4 * SLOTS):
            ticket = table.acquire()
            numbers.append(ticket.number)
            table.release(ticket)
        assert len(set(numbers)) == 4 * SLOTS

    def test_acquire_fails_without_a_free_slot(self, table: SharedTable) -> None:
        tickets = [table.acquire() for _ in range(SLOTS)]
        with pytest.raises(RuntimeError, match=r"full: all \d+ slots"):
            table.acquire()
        table.release(tickets[1])
        assert table.acquire().offset == tickets[1].offset

    def test_released_slot_is_reused_last(self, table: SharedTable) -> None:
        first = table.acquire()
        table.release(first)
        later = [table.acquire().offset for _ in range(SLOTS)]
        assert later[-1] == first.offset

    def test_ticket_survives_the_wire_format(self, table: SharedTable) -> None:
        ticket = table.acquire()
        assert all(isinstance(part, str | int) for part in ticket.to_wire())
        assert Ticket.from_wire(ticket.to_wire()) == ticket


class TestValues:
    def test_new_ticket_has_no_values(self, table: SharedTable) -> None:
        ticket = table.acquire()
        assert [table.read(ticket, length) for length in range(10)] == [None] * 10

    def test_written_values_are_read(self, table: SharedTable, worker: TableView) -> None:
        ticket = table.acquire()
        write(worker, ticket, 7, 0.5, -1.25)
        assert read(table, ticket, 7) == [0.5, -1.25]

    @pytest.mark.parametrize("length", [3, 6, 8, 11, 7 + 8 * LENGTH])
    def test_values_of_other_lengths_are_missing(
        self, table: SharedTable, worker: TableView, length: int
    ) -> None:
        ticket = table.acquire()
        write(worker, ticket, 7, 0.5, -1.25)
        assert table.read(ticket, length) is None

    def test_ring_keeps_the_latest_lengths(self, table: SharedTable, worker: TableView) -> None:
        ticket = table.acquire()
        for length in range(5, 15):
            write(worker, ticket, length, length, -length)
        assert [table.read(ticket, length) for length in range(5, 11)] == [None] * 6
        kept = {length: read(table, ticket, length) for length in range(11, 15)}
        assert kept == {length: [length, -length] for length in range(11, 15)}

    @pytest.mark.parametrize(("length", "later"), [(5, 11), (11, 11), (12, 12), (14, 14)])
    def test_read_from_returns_the_shortest_later_prefix(
        self, table: SharedTable, worker: TableView, length: int, later: int
    ) -> None:
        """The worker is up to nine tokens ahead of the reader, and the ring keeps four rows."""
        ticket, other = table.acquire(), table.acquire()
        for written in range(5, 15):
            write(worker, ticket, written, written, 1)
            write(worker, other, written + 1, written, 2)
        values = table.read_from(ticket, length)
        assert values is not None
        assert values.tolist() == [later, 1]
        assert table.read_from(ticket, 15) is None

    def test_stale_ticket_reads_no_values_of_the_next_one(
        self, table: SharedTable, worker: TableView
    ) -> None:
        stale = table.acquire()
        write(worker, stale, 3, 1, 1)
        table.release(stale)
        others = [table.acquire() for _ in range(SLOTS)]
        fresh = next(other for other in others if other.offset == stale.offset)
        assert table.read(fresh, 3) is None
        write(worker, fresh, 3, 2, 2)
        assert table.read(stale, 3) is None
        assert read(table, fresh, 3) == [2, 2]

    def test_late_write_to_a_stale_ticket_is_not_read(
        self, table: SharedTable, worker: TableView
    ) -> None:
        stale = table.acquire()
        table.release(stale)
        fresh = [table.acquire() for _ in range(SLOTS)][-1]
        assert fresh.offset == stale.offset
        write(worker, stale, 3, 1, 1)
        assert table.read(fresh, 3) is None

    def test_one_write_fills_many_rows(self, table: SharedTable, worker: TableView) -> None:
        tickets = [table.acquire() for _ in range(SLOTS)]
        lengths = np.array([2, 9, 4])
        worker.write(
            np.array([t.offset for t in tickets]) + lengths % LENGTH,
            np.array([t.number for t in tickets]),
            lengths,
            np.arange(6, dtype=np.float32).reshape(3, 2),
        )
        values_read = [read(table, t, n) for t, n in zip(tickets, lengths.tolist(), strict=True)]
        assert values_read == [[0, 1], [2, 3], [4, 5]]

    def test_read_returns_a_copy(self, table: SharedTable, worker: TableView) -> None:
        ticket = table.acquire()
        write(worker, ticket, 3, 1, 2)
        before = table.read(ticket, 3)
        write(worker, ticket, 3, 8, 9)
        assert before is not None
        assert before.tolist() == [1, 2]
        assert before.dtype == np.float32

    @settings(derandomize=True, deadline=None, max_examples=100)
    @given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(0, 12)), max_size=30))
    def test_random_writes_read_back_as_the_latest_per_row(
        self, writes: list[tuple[int, int]]
    ) -> None:
        table = SharedTable(slots=SLOTS, length=LENGTH, columns=COLUMNS)
        worker = TableView.open(table.path, COLUMNS)
        tickets = [table.acquire() for _ in range(SLOTS)]
        expected: dict[tuple[int, int], list[float]] = {}
        for i, (slot, length) in enumerate(writes):
            write(worker, tickets[slot], length, i, -i)
            for other in range(length % LENGTH, 13, LENGTH):
                expected.pop((slot, other), None)
            expected[slot, length] = [i, -i]
        values_read = {
            (slot, length): values
            for slot in range(SLOTS)
            for length in range(13)
            if (values := read(table, tickets[slot], length)) is not None
        }
        table.close()
        assert values_read == expected


WORKER = """
import sys
import numpy as np
from cdserve.shared_table import TableView, Ticket

path, number, offset, length = sys.argv[1:]
ticket = Ticket.from_wire([path, int(number), int(offset), int(length)])
view = TableView.open(ticket.path, 2)
for n in (6, 7):
    view.write(
        np.array([ticket.offset + n % ticket.length]),
        np.array([ticket.number]),
        np.array([n]),
        np.array([[n, n + 0.5]], dtype=np.float32),
    )
"""


class TestSharing:
    def test_values_written_by_another_process_are_read(self, table: SharedTable) -> None:
        ticket = table.acquire()
        wire = [str(part) for part in ticket.to_wire()]
        subprocess.run([sys.executable, "-c", WORKER, *wire], check=True, timeout=HANG_SECONDS)
        assert [read(table, ticket, n) for n in (5, 6, 7, 8)] == [None, [6, 6.5], [7, 7.5], None]

    def test_tables_of_one_process_are_separate(
        self, table: SharedTable, worker: TableView
    ) -> None:
        other = SharedTable(slots=SLOTS, length=LENGTH, columns=COLUMNS)
        theirs, ours = other.acquire(), table.acquire()
        write(worker, ours, 3, 1, 2)
        values_read = other.read(theirs, 3)
        other.close()
        assert values_read is None

    def test_open_rejects_a_different_number_of_columns(self, table: SharedTable) -> None:
        with pytest.raises(ValueError, match="rows of 3 values"):
            TableView.open(table.path, 3)

    def test_close_removes_the_file_and_keeps_views_readable(
        self, table: SharedTable, worker: TableView
    ) -> None:
        ticket = table.acquire()
        write(worker, ticket, 3, 1, 2)
        table.close()
        table.close()
        assert not Path(table.path).exists()
        assert read(table, ticket, 3) == [1, 2]


class TestAbandoned:
    """Tables of killed servers."""

    SCRIPT = """
from cdserve.shared_table import SharedTable
print(SharedTable(slots=1, columns=1).path, flush=True)
input()
"""

    def test_next_server_removes_the_table_of_a_killed_one(self) -> None:
        command = [sys.executable, "-c", self.SCRIPT]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with (
            subprocess.Popen(command, **pipes) as killed,
            subprocess.Popen(command, **pipes) as alive,
        ):
            abandoned, held = (Path(one.stdout.readline().strip()) for one in (killed, alive))
            killed.kill()
            killed.wait()
            assert abandoned.exists()
            SharedTable(slots=1, columns=1).close()
            assert not abandoned.exists()
            assert held.exists()
            alive.kill()
        held.unlink()


class TestPool:
    def test_tickets_of_any_lengths_share_no_rows(self) -> None:
        with closing(TablePool(columns=COLUMNS)) as pool, ExitStack() as stack:
            tickets = [
                stack.enter_context(pool.ticket(length))
                for length in [1, 16, 17, 1000, 100_000, 100_000, *[4000] * 40]
            ]
            rows = [(t.path, row) for t in tickets for row in range(t.offset, t.offset + t.length)]
            assert len(set(rows)) == len(rows)
            assert [ticket.length for ticket in tickets[:5]] == [16, 16, 32, 1024, 131_072]

    def test_span_of_rows_tells_those_that_were_written(self) -> None:
        with closing(TablePool(columns=COLUMNS)) as pool, pool.ticket(20) as ticket:
            view = TableView.open(ticket.path, COLUMNS)
            for length in (40, 42, 43):
                write(view, ticket, length, length, -length)
            values, written = pool.read_span(ticket, 40, 43)
            assert written.tolist() == [True, False, True, True]
            assert values[written].tolist() == [[40, -40], [42, -42], [43, -43]]

    def test_released_rows_are_given_to_later_tickets(self) -> None:
        with closing(TablePool(columns=COLUMNS)) as pool:
            paths = set()
            for _ in range(200):
                with pool.ticket(50_000) as ticket:
                    paths.add(ticket.path)
            assert len(paths) == 1
