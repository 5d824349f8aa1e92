"""What the rows of a step ask, as tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdserve.plugin.rows import Row
from value_heads import QHead

Rows = Tensor | slice
"""Rows of a tensor: an index, or a range of them, which copies nothing."""
MemberLogits = Callable[[Rows], Mapping[str, Tensor]]
"""Gives members' logits ``[N, |V|]`` of N rows of the batch, by name."""


def factors(
    heads: Sequence[QHead], hidden: Tensor, rows: Sequence[Row]
) -> Iterator[tuple[QHead, Tensor]]:
    """The heads that some row asks for, each with u times w / beta, ``[N, G, r]``."""
    column = 0
    for head in heads:
        columns = range(column, column + len(head.config.rewards))
        column = columns.stop
        by_row = [[row.tilt.coefficients.get(c, 0.0) for c in columns] for row in rows if row.tilt]
        if any(map(any, by_row)):
            weights = tensor(by_row, hidden.device) * head.scale
            yield head, head.factors(hidden) * weights[:, :, None]


def places(indices: Sequence[int], device: torch.device) -> Rows:
    """These rows, as a range where they are one."""
    start, stop = indices[0], indices[0] + len(indices)
    if list(indices) == list(range(start, stop)):
        return slice(start, stop)
    return index(indices, device)


def index(indices: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers, such as rows, in int64."""
    return _sent(np.array(indices, np.int64), device)


def tensor(values: Sequence[Any], device: torch.device) -> Tensor:
    """Numbers in float32; faster than ``torch.tensor``."""
    return _sent(np.array(values, np.float32), device)


def _sent(values: np.ndarray, device: torch.device) -> Tensor:
    made = torch.from_numpy(values)
    if device.type != "cuda":
        return made
    # From memory that is not pinned, the copy would wait for all that the device has to do.
    return made.pin_memory().to(device, non_blocking=True)
