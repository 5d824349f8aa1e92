"""Adapter to model runner V2: a model state that keeps the row table up to date.

This runner keeps each request in a slot and lays out the batch anew in every step. Sampled tokens
may still be on the device when the next step begins, so prefix lengths come from the scheduler's
count of computed tokens, as in vLLM's own states.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.interface import ModelState
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

from cdserve.worker.first_tokens import Draw
from cdserve.worker.inputs import to_device
from cdserve.worker.request import WorkerRequest
from cdserve.worker.resumed import path_kl_so_far
from cdserve.worker.rows import ROWS, Truncation


class _Tracking:
    """Mixin in front of the model's state class."""

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """Assigns a slot to a request that is new or resumes after a preemption."""
        super().add_request(req_index, new_req_data)  # type: ignore[misc]
        params, length = new_req_data.sampling_params, new_req_data.prompt_len
        request = params and WorkerRequest.of(params.extra_args)
        if request is None:
            ROWS.clear(req_index)
            return
        tokens = len(new_req_data.prefill_token_ids or ())
        ROWS.assign(
            req_index,
            request,
            prompt_length=length,
            temperature=params.temperature,
            truncation=Truncation(params.top_k, params.top_p, params.min_p),
            tokens=tokens,
            carried=path_kl_so_far(request, length, tokens),
        )

    def preprocess_state(self, input_batch: InputBatch, *args: Any, **kwargs: Any) -> None:
        """Begins a step; vLLM does not call this for dummy runs and captures."""
        super().preprocess_state(input_batch, *args, **kwargs)  # type: ignore[misc]
        tokens = input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens
        ROWS.begin_step(
            np.arange(len(tokens)),
            input_batch.idx_mapping_np,
            tokens,
            tokens >= input_batch.prefill_len_np,
            input_batch.query_start_loc_np,
        )


def first_draw(use_fp64: bool) -> Draw:
    """The draw of the first token of a request: this runner's noise is a function of the position.

    Args:
        use_fp64: whether the runner draws with noise in float64.
    """

    def draw(logits: Tensor, seeds: Sequence[int], positions: Tensor) -> Tensor:
        (noise_seeds,) = to_device([np.array(seeds)], np.int64, logits.device)
        every = torch.arange(len(seeds), device=logits.device)
        tokens: Tensor = gumbel_sample(
            logits,
            every,
            torch.ones(len(seeds), device=logits.device),
            noise_seeds,
            positions,
            apply_temperature=False,
            is_drafting=False,
            use_fp64=use_fp64,
        )
        return tokens

    return draw


def tracked(state: type[ModelState]) -> type[ModelState]:
    """Extends a model's state class to keep the row table up to date."""
    return type(state.__name__, (_Tracking, state), {})
