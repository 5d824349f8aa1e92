"""The hot path, each operation in PyTorch and in Triton: score, mix, tilt, charge KL budgets.

`runs_on` tells where the kernels run, and `operations` returns them or their PyTorch references.
Triton is imported when its kernels are asked for, not before.
"""

import importlib.util
from typing import Protocol, cast

import torch
from torch import Tensor

from . import reference
from .arguments import ROW_TILES, BatchMixture, BatchTilt, PackedHeads, PathKL, Statistics

__all__ = [
    "ROW_TILES",
    "BatchMixture",
    "BatchTilt",
    "Operations",
    "PackedHeads",
    "PathKL",
    "Statistics",
    "operations",
    "runs_on",
]


class Operations(Protocol):
    """A module of the three operations, `reference` or `fused`; `reference` explains them."""

    @staticmethod
    def score(
        hidden: Tensor, rows: Tensor, heads: PackedHeads, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return values of rows, and their weighted sums."""
        ...

    @staticmethod
    def steer(
        logits: Tensor,
        rows: Tensor,
        *,
        mixture: BatchMixture | None = None,
        tilt: BatchTilt | None = None,
        temperature: Tensor | None = None,
        measured: bool = True,
        kinds: Tensor | None = None,
    ) -> Statistics | None:
        """Mix and tilt rows of the logits in place."""
        ...

    @staticmethod
    def charge(
        paths: PathKL, slots: Tensor, tokens: Tensor, nats: Tensor, budgets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Charge a step's KL to the paths of rows, unless it exceeds their budgets."""
        ...


def runs_on(device: torch.device) -> bool:
    """Return whether the Triton kernels run on the device: a GPU, with Triton installed."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def operations(fused: bool) -> Operations:
    """Return the Triton kernels, or their references."""
    if not fused:
        return cast(Operations, reference)
    from . import fused as kernels

    return cast(Operations, kernels)
