"""The row table follows the batch as vLLM's model runners change it."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from vllm import SamplingParams
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.model_states.interface import ModelState

from cdserve.shared_table import Ticket
from cdserve.worker import runner_v1, runner_v2
from cdserve.worker.request import RowTilt, WorkerRequest
from cdserve.worker.rows import PromptRows, RowTable, SteeredRows, Step
from cdserve.worker.tickets import TABLE_IDS

SWAP = MoveDirectionality.SWAP
ONE_WAY = MoveDirectionality.UNIDIRECTIONAL

SLOTS = 8
NONE = Step(None, None, None)

Asked = dict[str, Any]


def ticket(number: int) -> Ticket:
    return Ticket("/table", number, number * 8, 8)


def asks(number: int, length: int | None = 1) -> Asked:
    return WorkerRequest(values=ticket(number), value_length=length).added_to(None)


def steered(**wanted: Any) -> Asked:
    request = WorkerRequest(tilt=RowTilt({0: 2.0}, None), path_kl=Ticket("/path", 1, 0, 16))
    return replace(request, **wanted).added_to(None)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> RowTable:
    table = RowTable(SLOTS, columns=2, members=("tuned", "ref"))
    monkeypatch.setattr(runner_v1, "ROWS", table)
    monkeypatch.setattr(runner_v2, "ROWS", table)
    return table


def numbers(table: RowTable) -> dict[int, int]:
    """Ticket number of each row to score in the step that has begun."""
    due = table.take_step().values
    if due is None:
        return {}
    return dict(zip(due.index.tolist(), due.destinations.number.tolist(), strict=True))


def steered_rows(table: RowTable) -> SteeredRows:
    """Those of the step that has begun; there must be some."""
    found = table.take_step().steered
    assert found is not None
    return found


def indices(rows: PromptRows | None) -> list[int]:
    return [] if rows is None else rows.index.tolist()


class Batch:
    """Changes to a batch as model runner V1 tells of them, one a step."""

    def __init__(self) -> None:
        config: Any = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=SLOTS))
        self._tracker = runner_v1.RowTracker(config, torch.device("cpu"), False)

    def step(
        self,
        *,
        removed: Sequence[int] = (),
        added: Sequence[tuple[int, Asked | None, list[int] | None, list[int]]] = (),
        moved: Sequence[tuple[int, int, MoveDirectionality]] = (),
        temperature: float = 1.0,
    ) -> None:
        requests = [
            (index, SamplingParams(extra_args=asked, temperature=temperature), prompt, output)
            for index, asked, prompt, output in added
        ]
        same = not (removed or requests or moved)
        self._tracker.update_state(
            None if same else BatchUpdate(8, list(removed), requests, list(moved))
        )


@pytest.fixture
def batch() -> Batch:
    return Batch()


class TestV1:
    def test_ticket_of_a_request_reaches_its_row(self, table: RowTable, batch: Batch) -> None:
        batch.step(added=[(3, asks(5, 2), [1, 2], [])])
        due = table.take_step().values
        assert due is not None
        assert [part.tolist() for part in due.destinations[1:]] == [[5], [40], [8]]
        assert TABLE_IDS[int(due.destinations.table[0])] == "/table"

    @pytest.mark.parametrize("extra", [None, {}, {"other": 1}])
    def test_plain_requests_have_no_row(
        self, table: RowTable, batch: Batch, extra: Asked | None
    ) -> None:
        batch.step(added=[(0, extra, [1, 2], [])])
        assert numbers(table) == {}

    def test_v1_row_is_scored_at_the_requested_length(self, table: RowTable, batch: Batch) -> None:
        output = [7]
        batch.step(added=[(0, asks(1, 5), [1, 2, 3], output)])
        assert numbers(table) == {}
        output.append(8)
        batch.step()
        assert numbers(table) == {0: 1}
        output.append(9)
        batch.step()
        assert numbers(table) == {}

    def test_every_drawn_prefix_is_scored_up_to_the_requested_length(
        self, table: RowTable, batch: Batch
    ) -> None:
        request = WorkerRequest(values=ticket(1), value_length=5, drawn_values=True)
        output: list[int] = []
        batch.step(added=[(0, request.added_to(None), [1, 2, 3], output)])
        scored = [numbers(table)]
        for token in (7, 8, 9):
            output.append(token)
            batch.step()
            scored.append(numbers(table))
        assert scored == [{}, {0: 1}, {0: 1}, {}]

    def test_prefixes_are_scored_again_after_every_few_tokens(
        self, table: RowTable, batch: Batch
    ) -> None:
        request = WorkerRequest(values=ticket(1), value_length=4, value_every=2)
        output: list[int] = []
        batch.step(added=[(0, request.added_to(None), [1, 2, 3], output), (1, asks(2, 2), [1], [])])
        scored = [numbers(table)]
        for token in (7, 8, 9, 10, 11):
            output.append(token)
            batch.step()
            scored.append(numbers(table))
        assert scored == [{}, {0: 1}, {}, {0: 1}, {}, {0: 1}]

    def test_whole_prompt_is_scored_at_its_end_and_not_beyond(
        self, table: RowTable, batch: Batch
    ) -> None:
        output: list[int] = []
        batch.step(added=[(0, asks(1, None), [1, 2, 3], output)])
        assert numbers(table) == {0: 1}
        output.append(7)
        batch.step()
        assert numbers(table) == {}

    def test_response_starts_where_the_request_says_or_after_its_prompt(
        self, table: RowTable, batch: Batch
    ) -> None:
        block = WorkerRequest(values=ticket(1), value_length=3, response_start=1)
        first, second = (0, block.added_to(None), [1, 2, 3], []), (1, asks(2, 2), [1, 2], [])
        batch.step(added=[first, second])
        due = table.take_step().values
        assert due is not None
        assert (due.tokens - due.response_starts).tolist() == [2, 0]

    def test_request_without_prompt_ids_is_accepted(self, table: RowTable, batch: Batch) -> None:
        batch.step(added=[(0, asks(1, 1), None, [7])])
        assert numbers(table) == {0: 1}

    def test_plain_request_clears_the_slot_it_takes(self, table: RowTable, batch: Batch) -> None:
        batch.step(added=[(0, asks(1), [1], [])])
        batch.step(added=[(0, None, [1], [])])
        assert numbers(table) == {}

    def test_removing_an_empty_slot_changes_nothing(self, table: RowTable, batch: Batch) -> None:
        batch.step(added=[(0, asks(1), [1], [])])
        batch.step(removed=[4, 5])
        assert numbers(table) == {0: 1}

    def test_moved_row_leaves_its_slot_and_takes_the_other(
        self, table: RowTable, batch: Batch
    ) -> None:
        batch.step(added=[(0, asks(1), [1], []), (1, asks(2), [1], [])])
        batch.step(moved=[(1, 0, ONE_WAY)])
        assert numbers(table) == {0: 2}

    def test_moved_plain_row_clears_its_target_slot(self, table: RowTable, batch: Batch) -> None:
        batch.step(added=[(0, asks(1), [1], [])])
        batch.step(moved=[(3, 0, ONE_WAY)])
        assert numbers(table) == {}

    def test_swap_with_a_plain_row_moves_the_request(self, table: RowTable, batch: Batch) -> None:
        batch.step(added=[(0, asks(1), [1], [])])
        batch.step(moved=[(0, 2, SWAP)])
        assert numbers(table) == {2: 1}
        batch.step(moved=[(0, 2, SWAP)])
        assert numbers(table) == {0: 1}

    def test_steered_row_is_steered_in_every_step(self, table: RowTable, batch: Batch) -> None:
        output: list[int] = []
        tilt = RowTilt({1: 2.0}, 3)
        added = [(0, steered(tilt=tilt), [1, 2], output), (1, asks(1, 2), [1, 2], output)]
        batch.step(added=added, temperature=0.5)
        for _ in range(3):
            due, rows, *_ = table.take_step()
            assert rows is not None
            assert (due is None) == bool(output)
            assert rows.coefficients.tolist() == [[0.0, 2.0]]
            assert (rows.index.tolist(), rows.top_k.tolist()) == ([0], [3])
            assert (rows.temperatures.tolist(), rows.tokens.tolist()) == ([0.5], [2 + len(output)])
            assert rows.begins.tolist() == [not output]
            output.append(9)
            batch.step()

    def test_row_may_be_scored_and_steered(self, table: RowTable, batch: Batch) -> None:
        both = steered(values=ticket(1), value_length=1)
        batch.step(added=[(0, both, [1], [])])
        due, rows, *_ = table.take_step()
        assert due is not None
        assert rows is not None
        assert due.index.tolist() == rows.index.tolist() == [0]

    def test_reused_slot_keeps_nothing_of_its_last_request(
        self, table: RowTable, batch: Batch
    ) -> None:
        asked = (
            WorkerRequest(mix={"base": 0.5, "ref": 0.25}),
            WorkerRequest(tilt=RowTilt({0: 4.0}, 7)),
        )
        for number in range(3 * SLOTS):
            request = replace(asked[1 - number % 2], values=ticket(number), value_length=1)
            row = request.added_to(None)
            batch.step(removed=[5], added=[(5, row, [1], [])], temperature=number / 20)
            found = steered_rows(table)
            assert found.weights.tolist() == [[0.5, 0.0, 0.25] if number % 2 else [0.0] * 3]
            assert found.coefficients.tolist() == [[0.0, 0.0] if number % 2 else [4.0, 0.0]]
            assert found.top_k.tolist() == [0 if number % 2 else 7]
            assert found.budgets.tolist() == [np.inf]


class _State(ModelState):
    """vLLM's interface with nothing behind it."""

    def __init__(self) -> None:
        pass

    def prepare_inputs_embeds(self, *args: Any) -> None:
        return None

    def prepare_inputs(self, *args: Any) -> dict[str, Any]:
        return {}

    prepare_dummy_inputs = prepare_attn = prepare_inputs


class Slots:
    """Requests in slots and batches of them, as model runner V2 tells of them."""

    def __init__(self) -> None:
        self._state: Any = runner_v2.tracked(_State)()
        self._buffers = InputBuffers(8, 64, torch.device("cpu"))
        self._prefill: dict[int, int] = {}

    def add(self, slot: int, asked: Asked | None, prompt: int, output: int = 0) -> None:
        """A request of so many tokens; one with output comes back from preemption."""
        new = NewRequestData(
            req_id=str(slot),
            prompt_token_ids=[1] * prompt,
            mm_features=[],
            sampling_params=SamplingParams(extra_args=asked, temperature=0.5),
            pooling_params=None,
            block_ids=([],),
            num_computed_tokens=0,
            lora_request=None,
            prefill_token_ids=[1] * (prompt + output),
        )
        self._state.add_request(slot, new)
        self._prefill[slot] = prompt + output

    def step(self, *rows: tuple[int, int, int]) -> None:
        """A batch of rows: slot, tokens computed before, tokens computed now."""
        slots, before, now = (np.array(column) for column in zip(*rows, strict=True))
        batch = InputBatch.make_dummy(len(rows), int(now.sum()), self._buffers)
        batch.idx_mapping_np = slots
        batch.query_start_loc_np = np.concatenate([[0], now.cumsum()])
        batch.num_computed_tokens_np, batch.num_scheduled_tokens = before, now
        batch.prefill_len_np = np.array([self._prefill[int(slot)] for slot in slots])
        self._state.preprocess_state(batch, (), None, torch.tensor(before))


@pytest.fixture
def slots() -> Slots:
    return Slots()


class TestV2:
    def test_rows_are_found_at_any_place_in_the_batch(self, table: RowTable, slots: Slots) -> None:
        slots.add(5, asks(1, 4), 3)
        slots.add(2, None, 3)
        slots.add(7, asks(3, 4), 3)
        slots.step((5, 3, 1), (2, 3, 1), (7, 3, 1))
        assert numbers(table) == {0: 1, 2: 3}
        slots.step((7, 3, 1), (2, 4, 1))
        assert numbers(table) == {0: 3}

    def test_v2_row_is_scored_at_the_requested_length(self, table: RowTable, slots: Slots) -> None:
        slots.add(0, asks(1, 5), 3)
        found = []
        for step in ((0, 0, 3), (0, 3, 1), (0, 4, 1), (0, 5, 1)):
            slots.step(step)
            found.append(numbers(table))
        assert found == [{}, {}, {0: 1}, {}]

    def test_v2_slot_keeps_nothing_of_its_last_request(self, table: RowTable, slots: Slots) -> None:
        slots.add(0, steered(), 3)
        slots.add(0, None, 3)
        slots.step((0, 0, 3))
        assert table.take_step() == NONE

    def test_only_the_last_chunk_of_a_prompt_draws(self, table: RowTable, slots: Slots) -> None:
        slots.add(0, steered(mix={"base": 0.5, "tuned": 0.5}), 6)
        found = []
        for step in ((0, 0, 4), (0, 4, 2), (0, 6, 1)):
            slots.step(step)
            assert table.members() == {"tuned"}
            rows = table.take_step().steered
            found.append(rows and [rows.tokens.tolist(), rows.temperatures.tolist()])
        assert found == [None, [[6], [0.5]], [[7], [0.5]]]

    def test_resumed_request_draws_after_its_output(self, table: RowTable, slots: Slots) -> None:
        slots.add(0, steered(), 3, output=4)
        found = []
        for step in ((0, 0, 3), (0, 3, 3), (0, 6, 1)):
            slots.step(step)
            rows = table.take_step().steered
            found.append(rows and (rows.tokens.tolist(), rows.begins.tolist()))
        assert found == [None, None, ([7], [True])]

    def test_every_position_of_a_chunked_prompt_is_scored(
        self, table: RowTable, slots: Slots
    ) -> None:
        slots.add(0, asks(1, None), 5)
        slots.step((0, 0, 4))
        assert (indices(table.prompt_value_rows()), numbers(table)) == ([0], {0: 1})
        slots.step((0, 4, 1))
        assert (indices(table.prompt_value_rows()), numbers(table)) == ([0], {0: 1})

    def test_step_reports_where_the_tokens_of_each_row_begin(
        self, table: RowTable, slots: Slots
    ) -> None:
        slots.add(4, asks(1, None), 5)
        slots.add(1, None, 3)
        slots.step((4, 0, 2), (1, 0, 3))
        assert table.starts is not None
        assert table.starts.tolist() == [0, 2, 5]

    def test_state_of_the_model_is_kept(self) -> None:
        state = runner_v2.tracked(_State)
        assert issubclass(state, _State)
        assert state.__name__ == "_State"


class TestSize:
    def test_more_members_than_flags_of_a_row_are_refused(self) -> None:
        names = [f"m{i}" for i in range(48)]
        table = RowTable(1, 0, names[:47])
        table.assign(0, WorkerRequest(token_stats_names=("base", "m0", "m46")), prompt_length=1)
        table.begin_step(np.array([0]), np.array([0]), np.array([1]))
        assert table.members() == {"m0", "m46"}
        with pytest.raises(ValueError, match="48 members; at most 47"):
            table.resize(1, 0, names)


class TestSteps:
    def test_rows_are_taken_once_per_step(self, table: RowTable, batch: Batch) -> None:
        batch.step(added=[(0, asks(1), [1], [])])
        assert numbers(table) == {0: 1}
        assert numbers(table) == {}
        batch.step()
        assert numbers(table) == {0: 1}

    def test_no_rows_are_taken_without_a_step(self, table: RowTable) -> None:
        assert table.take_step() == NONE

    def test_second_step_replaces_a_step_without_logits(
        self, table: RowTable, batch: Batch
    ) -> None:
        batch.step(added=[(0, asks(1), [1], [])])
        batch.step()
        assert numbers(table) == {0: 1}
        assert numbers(table) == {}

    def test_pass_outside_a_step_has_no_rows_and_runs_all_members(
        self, table: RowTable, batch: Batch
    ) -> None:
        """Such as a capture, or a dummy batch after a step: its rows are nobody's."""
        assert table.members() is None
        wanted = {
            "token_stats_names": ("base", "tuned"),
            "token_stats": Ticket("/likelihood", 1, 0, 16),
        }
        batch.step(added=[(0, asks(1, None), [1], []), (1, steered(**wanted), [1], [])])
        assert (indices(table.prompt_value_rows()), table.reads_tokens) == ([0], True)
        assert table.members() == {"tuned"}
        table.take_step()
        assert (table.prompt_value_rows(), table.reads_tokens, table.members()) == (
            None,
            False,
            None,
        )

    def test_prompt_rows_can_be_read_at_any_time_in_a_step(
        self, table: RowTable, batch: Batch
    ) -> None:
        batch.step(added=[(0, asks(1), [1], []), (1, asks(2, None), [1], []), (2, None, [1], [])])
        assert indices(table.prompt_value_rows()) == indices(table.prompt_value_rows()) == [1]


SIZE = 6
INDICES = st.integers(0, SIZE - 1)


class Changes(RuleBasedStateMachine):
    """A batch of ``SIZE`` destinations: each empty or plain (None), or a request that asks."""

    @initialize()
    def start(self) -> None:
        self.batch = Batch()
        self.destinations: list[int | None] = [None] * SIZE
        self.issued = 0

    @rule(index=INDICES, wanted=st.booleans())
    def add(self, index: int, wanted: bool) -> None:
        self.issued += 1
        self.batch.step(added=[(index, asks(self.issued) if wanted else None, [1], [])])
        self.destinations[index] = self.issued if wanted else None

    @rule(indices=st.lists(INDICES, min_size=1, max_size=3))
    def remove(self, indices: list[int]) -> None:
        self.batch.step(removed=indices)
        for index in indices:
            self.destinations[index] = None

    @rule(a=INDICES, b=INDICES)
    def swap(self, a: int, b: int) -> None:
        self.batch.step(moved=[(a, b, SWAP)])
        self.destinations[a], self.destinations[b] = self.destinations[b], self.destinations[a]

    @rule(a=INDICES, b=INDICES)
    def move(self, a: int, b: int) -> None:
        self.batch.step(moved=[(a, b, ONE_WAY)])
        moved, self.destinations[a] = self.destinations[a], None
        self.destinations[b] = moved

    @invariant()
    def rows_are_those_that_ask(self) -> None:
        self.batch.step()
        assert numbers(runner_v1.ROWS) == {
            i: number for i, number in enumerate(self.destinations) if number is not None
        }


TestChanges = Changes.TestCase
TestChanges.settings = settings(
    derandomize=True, deadline=None, max_examples=40, stateful_step_count=25
)
