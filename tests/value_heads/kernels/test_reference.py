"""The PyTorch references of the kernels, against the heads and the formulas."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from value_heads import HeadConfig, QHead, ValueHead, kl
from value_heads.kernels import BatchMixture, BatchTilt, PackedHeads, operations

from .charging import BUDGETS, LAUNCHES, SLOTS, Launch, check, rounded_up_to_the_limit

REFERENCE = operations(False)


def value_head(mlp_width: int | None = None) -> ValueHead:
    config = HeadConfig(
        architecture="mlp" if mlp_width else "linear",
        output="sigmoid" if mlp_width else "identity",
        rewards=("a", "b"),
        hidden_size=8,
        mlp_width=mlp_width,
        shift=(0.5, -1.0),
        scale=(2.0, 3.0),
        base_model="any",
    )
    return ValueHead(config)


def test_packed_heads_give_the_heads_values() -> None:
    heads, hidden = [value_head(), value_head(5), value_head()], torch.randn(6, 8)
    weights = torch.randn(2, 6)
    values, total = REFERENCE.score(
        hidden, torch.tensor([4, 1]), PackedHeads.from_heads(heads), weights
    )
    expected = torch.cat([head(hidden[[4, 1]]) for head in heads], dim=-1)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(total, (weights * expected).sum(-1))
    assert REFERENCE.score(hidden, torch.tensor([0]), PackedHeads.from_heads(heads))[1] is None


def test_packing_rejects_unsuitable_heads_and_an_empty_list() -> None:
    config = HeadConfig(
        architecture="mahalanobis",
        rewards=("a",),
        hidden_size=8,
        shift=(0.0,),
        scale=(1.0,),
        base_model="any",
    )
    with pytest.raises(ValueError, match="read the state alone, got 'mahalanobis'"):
        PackedHeads.from_heads([ValueHead(config)])
    paced = replace(config, architecture="linear", position_limit=9)
    with pytest.raises(ValueError, match="read the state alone, got 'linear', position_limit 9"):
        PackedHeads.from_heads([ValueHead(paced)])
    with pytest.raises(ValueError, match="there must be a head"):
        PackedHeads.from_heads([])


def test_steering_mixes_and_then_tilts_by_the_heads_values() -> None:
    config = HeadConfig(
        architecture="lowrank",
        rewards=("a", "b"),
        hidden_size=8,
        rank=4,
        vocab_size=11,
        shift=(0.0, 0.0),
        scale=(1.0, 2.0),
        base_model="any",
    )
    head, hidden = QHead(config), torch.randn(2, 8)
    torch.nn.init.normal_(head.factor.weight)
    weights, logits, member = torch.tensor([[0.5, 2.0], [1.0, 0.0]]), *torch.randn(2, 4, 11)
    before, index = logits.clone(), torch.tensor([3, 1])
    tilt = BatchTilt(
        factors=(head.factors(hidden) * (weights * head.scale)[:, :, None],),
        tokens=(head.tokens,),
    )
    mixture = BatchMixture(
        members=(member[index],), weights=torch.tensor([[0.5, 0.5], [2.0, -1.0]]), vocabulary=11
    )
    with torch.no_grad():
        found = REFERENCE.steer(logits, index, mixture=mixture, tilt=tilt)
    mix = (
        torch.tensor([[0.5], [2.0]]) * before[index]
        + torch.tensor([[0.5], [-1.0]]) * (member[index])
    )
    state = (head.state(hidden) * weights * head.scale).sum(-1, keepdim=True)
    expected = mix + (weights[:, :, None] * head(hidden)).sum(1) - state
    torch.testing.assert_close(logits[index], expected)
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    assert found is not None
    torch.testing.assert_close(found.kl, kl(before[index], expected))
    torch.testing.assert_close(found.log_sum_exp_before, before[index].logsumexp(-1))
    torch.testing.assert_close(
        found.entropy, torch.distributions.Categorical(logits=expected).entropy()
    )


@settings(deadline=None, max_examples=100)
@given(BUDGETS, LAUNCHES)
def test_reference_charge_matches_a_walk_along_each_path(
    budgets: list[float], launches: list[Launch]
) -> None:
    check(REFERENCE, budgets, launches)


def test_reference_charge_compares_the_limit_in_float64() -> None:
    budget, nats = rounded_up_to_the_limit()
    check(REFERENCE, [budget] * SLOTS, [{0: (1, nats)}, {0: (2, nats)}])
