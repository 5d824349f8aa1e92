"""Inputs of the kernels' tests: awkward sizes, and poison wherever nothing may be read."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

RUN = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
"""Whether the kernels run in this process."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def poisoned(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers [rows, columns] with NaN around them in memory."""
    room = torch.full((rows + 2, columns + 5), torch.nan, dtype=dtype, device=DEVICE)
    room[1 : rows + 1, :columns] = 3 * torch.randn(rows, columns, device=DEVICE)
    return room[1 : rows + 1, :columns]


def logits_of(batch: int, vocabulary: int, rows: Sequence[int]) -> Tensor:
    """Logits [batch, |V|]; rows not named are NaN, some tokens of each are masked by a grammar."""
    made = poisoned(batch, vocabulary)
    made[torch.rand_like(made) < 0.2] = -torch.inf
    made[:, : vocabulary // 3] = -torch.inf
    made[:, -1] = 1.0
    made[[i for i in range(batch) if i not in rows]] = torch.nan
    return made
