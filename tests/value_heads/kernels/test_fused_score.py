"""Value scoring by the kernels, against the heads themselves in float64."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from value_heads import HeadConfig, ValueHead
from value_heads.kernels import PackedHeads, operations

from .cases import DEVICE, poisoned


@pytest.fixture(autouse=True)
def _nan_in_new_memory() -> Iterator[None]:
    """What a kernel leaves unwritten is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


def head(width: int, outputs: int, mlp_width: int | None = None, **fields: Any) -> ValueHead:
    config = HeadConfig(
        architecture="mlp" if mlp_width else "linear",
        rewards=tuple("abcdefgh"[:outputs]),
        hidden_size=width,
        mlp_width=mlp_width,
        shift=tuple(0.5 * i for i in range(outputs)),
        scale=tuple(1.0 + i for i in range(outputs)),
        base_model="any",
        **fields,
    )
    return ValueHead(config).to(DEVICE)


@torch.no_grad()
def exact(heads: list[ValueHead], hidden: Tensor) -> Tensor:
    """What the heads give, float64 [n, G], but for the float32 they compute in."""
    values = []
    for head in heads:
        raw = deepcopy(head.net).double()(hidden.double())
        if head.config.output == "sigmoid":
            raw = raw.sigmoid()
        values.append(head.shift.double() + head.scale.double() * raw)
    return torch.cat(values, dim=-1)


HEADS: dict[str, Callable[[int], list[ValueHead]]] = {
    "linear": lambda d: [head(d, 1)],
    "eight linear": lambda d: [head(d, 8)],
    "bounded": lambda d: [head(d, 2, output="sigmoid"), head(d, 1)],
    "mlp": lambda d: [head(d, 3, 20)],
    "all, in several blocks": lambda d: [head(d, 1), head(d, 2, 90, output="sigmoid"), head(d, 4)],
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    ("batch", "rows", "width", "dtype"),
    [
        (1, [0], 17, torch.float32),
        (23, [22, 0, *range(2, 18)], 130, torch.bfloat16),
        (5, [4, 1], 256, torch.float16),
    ],
)
def test_score_kernel_matches_the_heads_in_float64(
    name: str, batch: int, rows: list[int], width: int, dtype: torch.dtype
) -> None:
    heads = HEADS[name](width)
    hidden = poisoned(batch, width, dtype)
    hidden[[i for i in range(batch) if i not in rows]] = torch.nan
    index = torch.tensor(rows, device=DEVICE)
    for weights in (None, torch.randn(len(rows), sum(len(h.config.rewards) for h in heads))):
        if weights is not None:
            weights[0, 0], weights = 0.0, weights.to(DEVICE)
        packed = PackedHeads.from_heads(heads)
        values, total = operations(True).score(hidden, index, packed, weights)
        expected = exact(heads, hidden[index])
        torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
        assert (total is None) == (weights is None)
        if total is not None and weights is not None:
            summed = (weights.double() * expected).sum(-1)
            torch.testing.assert_close(total.double(), summed, rtol=1e-5, atol=1e-4)


def test_score_kernel_matches_the_heads_at_the_widest_states() -> None:
    heads, hidden = [head(8192, 2)], poisoned(2, 8192, torch.bfloat16)
    index = torch.tensor([1, 0], device=DEVICE)
    values, _ = operations(True).score(hidden, index, PackedHeads.from_heads(heads))
    torch.testing.assert_close(values.double(), exact(heads, hidden[index]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mlp_width", [None, 20])
def test_nan_of_one_head_does_not_reach_others(mlp_width: int | None) -> None:
    """And where its weight is 0 it takes no part in the sum."""
    heads, hidden = [head(16, 1, mlp_width), head(16, 1)], poisoned(1, 16)
    with torch.no_grad():
        for parameter in heads[0].parameters():
            parameter.fill_(torch.nan)
    weights, index = torch.tensor([[0.0, 2.0]], device=DEVICE), torch.tensor([0], device=DEVICE)
    values, total = operations(True).score(hidden, index, PackedHeads.from_heads(heads), weights)
    assert values[0].isnan().tolist() == [True, False]
    assert total is not None
    torch.testing.assert_close(total, 2 * values[:, 1])
