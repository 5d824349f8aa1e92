"""Adapter to model runner V1: a logits processor that keeps the row table up to date.

The runner draws with a generator per seeded request, which moves on with every token.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
)
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

from cdserve.worker.first_tokens import Draw
from cdserve.worker.request import WorkerRequest, wire_form
from cdserve.worker.resumed import path_kl_so_far
from cdserve.worker.rows import ROWS, Truncation


class RowTracker(LogitsProcessor):  # type: ignore[misc]
    """Keeps the row table up to date; does not change the logits.

    Rows of this runner's batch move, so requests get stable slots here.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._slots: dict[int, int] = {}
        self._outputs: dict[int, Sequence[int]] = {}
        self._prompts: dict[int, int] = {}
        self._free = deque(range(vllm_config.scheduler_config.max_num_seqs))
        self._lay_out()

    def is_argmax_invariant(self) -> bool:
        """True, since the logits do not change."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Applies the changes of the batch before a forward pass, and begins a step.

        The runner does not report how much of a prompt a step computes. Every chunk is treated as
        the last; the results of the real last chunk replace those of earlier ones.
        """
        if batch_update is not None:
            self._follow(batch_update)
            self._lay_out()
        outputs = np.fromiter(map(len, self._drawn), np.int64, len(self._drawn))
        ROWS.begin_step(self._index, self._of_rows, self._lengths + outputs)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the logits unchanged."""
        return logits

    def _follow(self, update: BatchUpdate) -> None:
        for index in update.removed:
            self._leave(index)
        for index, params, prompt, output in update.added:
            self._leave(index)
            length = len(prompt or ())
            request = WorkerRequest.of(params.extra_args)
            if request is not None:
                tokens = length + len(output)
                slot = self._slots[index] = self._free.popleft()
                self._prompts[slot], self._outputs[slot] = length, output
                ROWS.assign(
                    slot,
                    request,
                    prompt_length=length,
                    temperature=params.temperature,
                    truncation=Truncation(params.top_k, params.top_p, params.min_p),
                    tokens=tokens,
                    carried=path_kl_so_far(request, length, tokens),
                )
        for source, target, direction in update.moved:
            moved = self._slots.pop(source, None)
            if direction == MoveDirectionality.SWAP and target in self._slots:
                self._slots[source] = self._slots.pop(target)
            self._leave(target)
            if moved is not None:
                self._slots[target] = moved

    def _leave(self, index: int) -> None:
        slot = self._slots.pop(index, None)
        if slot is not None:
            del self._prompts[slot], self._outputs[slot]
            ROWS.clear(slot)
            self._free.append(slot)

    def _lay_out(self) -> None:
        """Collects the rows with a ``WorkerRequest``, in the order of the batch."""
        rows = sorted(self._slots.items())
        self._index = np.array([index for index, _ in rows], np.int64)
        self._of_rows = np.array([slot for _, slot in rows], np.int64)
        self._lengths = np.array([self._prompts[slot] for _, slot in rows], np.int64)
        self._drawn = [self._outputs[slot] for _, slot in rows]


def first_draw(use_fp64: bool) -> Draw:
    """The draw of the first token of a seeded request.

    Args:
        use_fp64: whether the runner draws with noise in float64.
    """
    sampler = TopKTopPSampler(use_fp64_gumbel=use_fp64)

    def draw(logits: Tensor, seeds: Sequence[int], positions: Tensor) -> Tensor:
        generators = {i: torch.Generator(logits.device) for i in range(len(seeds))}
        for generator, seed in zip(generators.values(), seeds, strict=True):
            generator.manual_seed(seed)
        tokens: Tensor = sampler(logits, generators, None, None)[0]
        return tokens

    return draw


def skip_first_draws(runner: Any, requests: Sequence[NewRequestData]) -> None:
    """Moves generators past the draw of a first token, which an earlier request has made.

    Args:
        runner: model runner V1 between the forward pass and the draws.
        requests: requests that are new in this step.
    """
    asked = {
        r.req_id: wire_form(r.sampling_params and r.sampling_params.extra_args) for r in requests
    }
    begun = [name for name, wire in asked.items() if wire is not None and wire.get("first_drawn")]
    generators = [g for name in begun if (g := runner.requests[name].generator) is not None]
    if generators:
        sampler = runner.sampler.topk_topp_sampler
        unused = torch.zeros(len(generators), runner.input_batch.vocab_size, device=runner.device)
        sampler(unused, dict(enumerate(generators)), None, None)
