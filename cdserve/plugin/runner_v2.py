"""Model runner V2: the row table follows the batch through the model's own state.

There a row of the batch is not a request: the runner keeps each request in a slot, and lays out the
batch anew every step. Sampled tokens may still be on the device when the next step begins, so a
row's prefix is counted from what the scheduler has computed, as vLLM's own states do.
"""

from typing import Any

from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.interface import ModelState

from cdserve.plugin.rows import ROWS, Row


class _Tracking:
    """Mixed in before the state that vLLM has for the model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slots: dict[int, Row] = {}

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """A request, new or back from preemption, takes a slot."""
        super().add_request(req_index, new_req_data)  # type: ignore[misc]
        self._slots.pop(req_index, None)
        params = new_req_data.sampling_params
        if params is None:
            return
        row = Row.read(params.extra_args, new_req_data.prompt_len, params.temperature)
        if row is not None:
            self._slots[req_index] = row

    def preprocess_state(self, input_batch: InputBatch, *args: Any, **kwargs: Any) -> None:
        """A step begins; not called for dummy runs and captures."""
        super().preprocess_state(input_batch, *args, **kwargs)  # type: ignore[misc]
        computed = input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens
        rows = {}
        for index, slot in enumerate(input_batch.idx_mapping_np.tolist()):
            if (row := self._slots.get(slot)) is not None:
                row.tokens = int(computed[index])
                row.draws = row.tokens >= int(input_batch.prefill_len_np[index])
                rows[index] = row
        ROWS.begin(rows, input_batch.query_start_loc_np)


def tracked(state: type[ModelState]) -> type[ModelState]:
    """A model's state class that tells the row table of each step too."""
    return type(state.__name__, (_Tracking, state), {})
