"""The row table follows the batch as vLLM changes it."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cdserve.plugin.rows import REQUEST_KEY, RowTable
from cdserve.value_table import Ticket


def asks(number: int, length: int | None = 1) -> dict[str, Any]:
    ticket = Ticket("/table", number, number * 8, 8)
    return {REQUEST_KEY: {"values": ticket.to_wire(), "length": length}}


def numbers(table: RowTable) -> dict[int, int]:
    """Ticket number of each row to score in the next step."""
    table.arm()
    return {index: row.ticket.number for index, row in table.take().items()}


@pytest.fixture
def table() -> RowTable:
    return RowTable()


class TestRows:
    def test_the_ticket_arrives(self, table: RowTable) -> None:
        table.add(3, asks(5, 2), [1, 2], [])
        table.arm()
        assert table.take()[3].ticket == Ticket("/table", 5, 40, 8)

    @pytest.mark.parametrize("extra", [None, {}, {"other": 1}])
    def test_requests_that_do_not_ask_have_no_row(
        self, table: RowTable, extra: dict[str, object] | None
    ) -> None:
        table.add(0, extra, [1, 2], [])
        assert numbers(table) == {}

    def test_a_row_is_scored_at_the_length_it_asks_for(self, table: RowTable) -> None:
        output = [7]
        table.add(0, asks(1, 5), [1, 2, 3], output)
        assert numbers(table) == {}
        output.append(8)
        assert numbers(table) == {0: 1}
        output.append(9)
        assert numbers(table) == {}

    def test_a_request_without_prompt_ids(self, table: RowTable) -> None:
        table.add(0, asks(1, 1), None, [7])
        assert numbers(table) == {0: 1}

    def test_only_some_ask_for_every_position(self, table: RowTable) -> None:
        table.add(0, asks(1), [1], [])
        table.add(1, asks(2, None), [1], [])
        table.add(2, None, [1], [])
        assert list(table.every_position()) == [1]
        assert numbers(table) == {0: 1}

    def test_a_plain_request_takes_the_place_of_one_that_asked(self, table: RowTable) -> None:
        table.add(0, asks(1), [1], [])
        table.add(0, None, [1], [])
        assert numbers(table) == {}

    def test_removing_what_is_not_there(self, table: RowTable) -> None:
        table.add(0, asks(1), [1], [])
        table.remove([4, 5])
        assert numbers(table) == {0: 1}

    def test_a_move_leaves_its_place_and_takes_the_other(self, table: RowTable) -> None:
        table.add(0, asks(1), [1], [])
        table.add(1, asks(2), [1], [])
        table.move(1, 0, swap=False)
        assert numbers(table) == {0: 2}

    def test_a_plain_row_that_moves_clears_its_target(self, table: RowTable) -> None:
        table.add(0, asks(1), [1], [])
        table.move(3, 0, swap=False)
        assert numbers(table) == {}

    def test_a_swap_with_a_plain_row(self, table: RowTable) -> None:
        table.add(0, asks(1), [1], [])
        table.move(0, 2, swap=True)
        assert numbers(table) == {2: 1}
        table.move(0, 2, swap=True)
        assert numbers(table) == {0: 1}


class TestSteps:
    def test_rows_are_taken_once_a_step(self, table: RowTable) -> None:
        table.add(0, asks(1), [1], [])
        table.arm()
        assert list(table.take()) == [0]
        assert table.take() == {}
        table.arm()
        assert list(table.take()) == [0]

    def test_without_a_step_there_are_none(self, table: RowTable) -> None:
        table.add(0, asks(1), [1], [])
        assert table.take() == {}

    def test_two_steps_without_logits_are_one(self, table: RowTable) -> None:
        table.add(0, asks(1), [1], [])
        table.arm()
        table.arm()
        assert list(table.take()) == [0]
        assert table.take() == {}

    def test_every_position_may_be_asked_for_at_any_time(self, table: RowTable) -> None:
        table.add(0, asks(1, None), [1], [])
        assert list(table.every_position()) == list(table.every_position()) == [0]


SIZE = 6
INDICES = st.integers(0, SIZE - 1)


class Batch(RuleBasedStateMachine):
    """A batch of ``SIZE`` places: each empty or plain (None), or a request that asks."""

    @initialize()
    def start(self) -> None:
        self.table = RowTable()
        self.places: list[int | None] = [None] * SIZE
        self.issued = 0

    @rule(index=INDICES, wanted=st.booleans())
    def add(self, index: int, wanted: bool) -> None:
        self.issued += 1
        self.table.add(index, asks(self.issued) if wanted else None, [1], [])
        self.places[index] = self.issued if wanted else None

    @rule(indices=st.lists(INDICES, max_size=3))
    def remove(self, indices: list[int]) -> None:
        self.table.remove(indices)
        for index in indices:
            self.places[index] = None

    @rule(a=INDICES, b=INDICES)
    def swap(self, a: int, b: int) -> None:
        self.table.move(a, b, swap=True)
        self.places[a], self.places[b] = self.places[b], self.places[a]

    @rule(a=INDICES, b=INDICES)
    def move(self, a: int, b: int) -> None:
        self.table.move(a, b, swap=False)
        moved, self.places[a] = self.places[a], None
        self.places[b] = moved

    @invariant()
    def rows_are_those_that_ask(self) -> None:
        assert numbers(self.table) == {
            i: number for i, number in enumerate(self.places) if number is not None
        }


TestBatch = Batch.TestCase
TestBatch.settings = settings(
    derandomize=True, deadline=None, max_examples=40, stateful_step_count=25
)
