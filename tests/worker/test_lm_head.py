"""Where the output embedding of a model is found."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cdserve.worker.lm_head import lm_head

WEIGHT = nn.Parameter(torch.ones(5, 3))


def layer(weight: Any) -> Any:
    return SimpleNamespace(weight=weight)


def untied() -> Any:
    embedding = layer(torch.zeros(5, 3))
    return SimpleNamespace(lm_head=layer(WEIGHT), model=SimpleNamespace(embed_tokens=embedding))


def tied() -> Any:
    """As Gemma 2, which has no layer of its own for it."""
    return SimpleNamespace(model=SimpleNamespace(embed_tokens=layer(WEIGHT)))


def nested() -> Any:
    """As a multi-modal model, whose language model is a part."""
    return SimpleNamespace(get_language_model=untied)


@pytest.mark.parametrize("model", [untied, tied, nested])
def test_lm_head_is_found_in_each_kind_of_architecture(model: Any) -> None:
    assert lm_head(model()) is WEIGHT


@pytest.mark.parametrize(
    "head",
    [
        SimpleNamespace(),
        SimpleNamespace(qweight=torch.ones(5, 3)),
        layer(torch.ones(5, 3).to(torch.float8_e4m3fn)),
        layer(torch.ones(5, 3, dtype=torch.int8)),
    ],
    ids=["another stage", "packed", "fp8", "int8"],
)
def test_unreadable_lm_head_is_left_out(head: Any) -> None:
    embedding = layer(torch.zeros(5, 3))
    model = SimpleNamespace(lm_head=head, model=SimpleNamespace(embed_tokens=embedding))
    assert lm_head(model) is None
