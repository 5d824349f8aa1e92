"""The hot path, each operation in PyTorch and in Triton: score, mix, tilt, charge KL budgets.

`runs_on` says where the kernels run, `operations` gives them or their references. Triton is
imported when its kernels are asked for, not before.
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
    """What `reference` explains; a module of its functions, or of kernels'."""

    @staticmethod
    def score(
        hidden: Tensor, rows: Tensor, heads: PackedHeads, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Values of rows, and their weighted sum."""
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
        """Mixes and tilts rows of the logits in place."""
        ...

    @staticmethod
    def charge(
        paths: PathKL, slots: Tensor, tokens: Tensor, nats: Tensor, budgets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The path KL of rows after this step, and whether the step passes their budgets."""
        ...


def runs_on(device: torch.device) -> bool:
    """Return whether the Triton kernels run there: a GPU, with Triton installed."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def operations(fused: bool) -> Operations:
    """Return the Triton kernels, or their references."""
    if not fused:
        return cast(Operations, reference)
    from . import fused as kernels

    return cast(Operations, kernels)
