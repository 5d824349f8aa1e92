"""Copies the inputs of a step to the device."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MemberLogits = Callable[[Tensor], Mapping[str, Tensor]]
"""Returns logits ``[n, |V|]`` of rows int64 ``[n]`` of the batch, by member."""
_ALIGNMENT = 16


def to_device(arrays: Sequence[npt.NDArray[Any]], dtype: Any, device: torch.device) -> list[Tensor]:
    """Copies arrays to the device as tensors of one dtype, in one asynchronous copy.

    Each tensor begins at a multiple of 16 bytes, so that kernels can load it wide.
    """
    item = np.dtype(dtype).itemsize
    sizes = [-(-array.size * item // _ALIGNMENT) * _ALIGNMENT // item for array in arrays]
    whole = np.empty(sum(sizes), dtype)
    start = 0
    for array, size in zip(arrays, sizes, strict=True):
        whole[start : start + array.size] = array.reshape(-1)
        start += size
    parts = torch.split(_copied(torch.from_numpy(whole), device), sizes)
    return [part[: array.size].view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        # A copy from unpinned memory would wait for all work queued on the device.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
