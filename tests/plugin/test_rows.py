"""The row table follows the batch as vLLM changes it."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cdserve.plugin.rows import REQUEST_KEY, Row, RowTable, Tilt
from cdserve.value_table import Ticket


def asks(number: int, length: int | None = 1) -> dict[str, Any]:
    ticket = Ticket("/table", number, number * 8, 8)
    return {REQUEST_KEY: {"values": ticket.to_wire(), "length": length}}


def numbers(table: RowTable) -> dict[int, int]:
    """Ticket number of each row to score in the next step."""
    table.arm()
    return {index: row.values.number for index, row in table.take().due.items()}


@pytest.fixture
def table() -> RowTable:
    return RowTable()


class TestRows:
    def test_the_ticket_arrives(self, table: RowTable) -> None:
        table.add(3, asks(5, 2), [1, 2], [])
        table.arm()
        assert table.take().due[3].values == Ticket("/table", 5, 40, 8)

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
        assert list(table.take().due) == [0]
        assert table.take().due == {}
        table.arm()
        assert list(table.take().due) == [0]

    def test_without_a_step_there_are_none(self, table: RowTable) -> None:
        table.add(0, asks(1), [1], [])
        assert table.take().due == {}

    def test_two_steps_without_logits_are_one(self, table: RowTable) -> None:
        table.add(0, asks(1), [1], [])
        table.arm()
        table.arm()
        assert list(table.take().due) == [0]
        assert table.take().due == {}

    def test_every_position_may_be_asked_for_at_any_time(self, table: RowTable) -> None:
        table.add(0, asks(1, None), [1], [])
        assert list(table.every_position()) == list(table.every_position()) == [0]


def steered(**tilt: Any) -> dict[str, Any]:
    wanted = {"by": {"0": 2.0}, "top_k": None} | tilt
    return {REQUEST_KEY: {"tilt": wanted, "path": Ticket("/path", 1, 0, 16).to_wire()}}


class TestTilted:
    def test_a_steered_row_is_tilted_in_every_step(self, table: RowTable) -> None:
        output: list[int] = []
        table.add(0, steered(top_k=3), [1, 2], output, temperature=0.5)
        table.add(1, asks(1, 2), [1, 2], output)
        for _ in range(3):
            table.arm()
            due, tilted = table.take()
            assert list(due) == ([1] if not output else [])
            assert tilted[0].tilt == Tilt({0: 2.0}, 3)
            assert (list(tilted), tilted[0].temperature) == ([0], 0.5)
            output.append(9)

    def test_a_row_may_be_both(self, table: RowTable) -> None:
        both = {REQUEST_KEY: {**asks(1, 1)[REQUEST_KEY], **steered()[REQUEST_KEY]}}
        table.add(0, both, [1], [])
        table.arm()
        due, tilted = table.take()
        assert list(due) == list(tilted) == [0]

    def test_kl_is_summed_along_the_path(self) -> None:
        output: list[int] = []
        row = Row.read(steered()[REQUEST_KEY], 2, output, 1.0)
        spent = []
        for nats in (0.5, 0.25, 1.0):
            spent.append(row.spend(nats))
            output.append(7)
        assert spent == [0.5, 0.75, 1.75]

    def test_a_prefix_met_again_counts_once(self) -> None:
        """As while a prompt is computed in chunks."""
        row = Row.read(steered()[REQUEST_KEY], 2, [], 1.0)
        assert [row.spend(9.0), row.spend(3.0), row.spend(0.5)] == [9.0, 3.0, 0.5]


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
