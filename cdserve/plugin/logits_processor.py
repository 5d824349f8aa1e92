"""vLLM's V1 logits-processor interface, through which the row table follows the batch."""

import torch
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
)

from cdserve.plugin.rows import ROWS


class RowTracker(LogitsProcessor):  # type: ignore[misc]
    """Keeps the row table in step with the batch; leaves the logits alone."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        pass

    def is_argmax_invariant(self) -> bool:
        """True: it changes no logits."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Called before every forward pass, with what changed in the batch."""
        ROWS.arm()
        if batch_update is None:
            return
        ROWS.remove(batch_update.removed)
        for index, params, prompt, output in batch_update.added:
            ROWS.add(index, params.extra_args, prompt, output, params.temperature)
        for source, target, direction in batch_update.moved:
            ROWS.move(source, target, direction == MoveDirectionality.SWAP)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits as they are."""
        return logits
