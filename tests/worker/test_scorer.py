"""The worker's scorer over heads of all kinds: the values that reach the table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdserve.shared_table import SharedTable
from cdserve.worker.readback import ReadBack
from cdserve.worker.request import WorkerRequest
from cdserve.worker.rows import RowTable
from cdserve.worker.scorer import ValueScorer
from tests.value_heads.kernels.cases import DEVICE, RUN
from value_heads import HeadConfig, ValueHead

WIDTH = 37
KINDS: list[dict[str, Any]] = [
    {"architecture": "linear", "rewards": ("a", "b"), "output": "sigmoid"},
    {"architecture": "mahalanobis", "rewards": ("c",)},
    {"architecture": "mlp", "rewards": ("d",), "mlp_width": 9},
    {"architecture": "mlp", "rewards": ("e",), "mlp_width": 9, "position_limit": 5},
    {"architecture": "linear", "rewards": ("f",), "position_limit": 100},
]


@pytest.fixture
def heads(tmp_path: Path) -> list[ValueHead]:
    """Heads of every architecture, saved."""
    torch.manual_seed(0)
    made = []
    for i, kind in enumerate(KINDS):
        none = kind["architecture"] == "mahalanobis"
        count = len(kind["rewards"])
        config = HeadConfig(
            **kind,
            hidden_size=WIDTH,
            shift=(0.0 if none else 0.5,) * count,
            scale=(1.0 if none else 2.0,) * count,
            base_model="any",
        )
        made.append(ValueHead(config))
        made[-1].save_pretrained(tmp_path / str(i))
    return made


@pytest.mark.parametrize("fused", [False, True] if RUN else [False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scorer_writes_values_of_requesting_rows_into_the_table(
    tmp_path: Path, heads: list[ValueHead], dtype: torch.dtype, fused: bool
) -> None:
    """Of the rows that ask alone, in a step and over a whole prompt."""
    back = ReadBack()
    scorer = ValueScorer([str(tmp_path / str(i)) for i in range(len(heads))], DEVICE, fused, back)
    hidden = torch.randn(6, WIDTH).to(dtype)
    places, positions = [5, 1, 2, 3, 4, 5], torch.tensor([6, 2, -2, -1, 0, 1])
    with torch.no_grad():
        expected = torch.cat([head(hidden[places], positions) for head in heads], dim=-1)
    hidden = hidden.to(DEVICE)
    table = SharedTable(slots=3, columns=expected.shape[1], length=8)
    try:
        last, second, every = (table.acquire() for _ in range(3))
        rows = RowTable(slots=4)
        block = WorkerRequest(values=last, value_length=7, response_start=1)
        rows.assign(2, block, prompt_length=4)
        rows.assign(
            0, WorkerRequest(values=second, value_length=5, response_start=3), prompt_length=4
        )
        rows.begin_step(np.array([5, 1]), np.array([2, 0]), np.array([7, 5]))
        due = rows.take_step().values
        assert due is not None
        scorer.score_last(hidden, due)
        rows.assign(3, WorkerRequest(values=every, response_start=3), prompt_length=4)
        rows.begin_step(np.array([1]), np.array([3]), np.array([4]))
        spans = rows.prompt_value_rows()
        assert spans is not None
        scorer.score_every(hidden, spans, np.array([0, 2, 6]))
        back.flush(back.count)
        found = [table.read(last, 7), table.read(second, 5)]
        found += [table.read(every, length) for length in (1, 2, 3, 4)]
    finally:
        table.close()
    for values, right in zip(found, expected, strict=True):
        assert values is not None
        torch.testing.assert_close(torch.from_numpy(values), right, rtol=1e-5, atol=1e-5)
