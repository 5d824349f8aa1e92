"""Model runner V1: the row table follows the batch through a logits processor."""

from collections.abc import Sequence

import torch
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
)

from cdserve.plugin.rows import ROWS, Row

Place = tuple[Row, Sequence[int]]
"""A row and its output tokens so far, a list that vLLM keeps up to date."""


class RowTracker(LogitsProcessor):  # type: ignore[misc]
    """Keeps the row table in step with the batch; leaves the logits alone."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._places: dict[int, Place] = {}

    def is_argmax_invariant(self) -> bool:
        """True: it changes no logits."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Called before every forward pass, with what changed in the batch.

        The runner does not say how much of a prompt a step computes: every chunk of it passes for
        the last, and what the last gives stands.
        """
        if batch_update is not None:
            self._follow(batch_update)
        for row, output in self._places.values():
            row.tokens = row.prompt_length + len(output)
        ROWS.begin({index: self._places[index][0] for index in sorted(self._places)})

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits as they are."""
        return logits

    def _follow(self, update: BatchUpdate) -> None:
        for index in update.removed:
            self._places.pop(index, None)
        for index, params, prompt, output in update.added:
            row = Row.read(params.extra_args, len(prompt or ()), params.temperature)
            self._put(index, None if row is None else (row, output))
        for source, target, direction in update.moved:
            moved, displaced = self._places.pop(source, None), self._places.pop(target, None)
            if direction == MoveDirectionality.SWAP:
                self._put(source, displaced)
            self._put(target, moved)

    def _put(self, index: int, place: Place | None) -> None:
        self._places.pop(index, None)
        if place is not None:
            self._places[index] = place
