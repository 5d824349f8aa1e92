"""Rollouts of the tabular model "ab3", in exact proportion to p, with one-hot states."""

from functools import cache

import torch

from tests.decoders.toy import LENGTH, P, Tokens, blocks, ended, probability
from tests.decoders.toy import reward as reward_of
from value_heads import Base, Head, HeadConfig, QHead, Rollouts, ValueHead

RESPONSES: list[Tokens] = [y for y in blocks((), None) for _ in range(round(1000 * probability(y)))]
STATES: list[Tokens] = sorted({y[:i] for y in RESPONSES for i in range(len(y) + 1)})
BASE = Base(lm_head=torch.tensor(P).log()[:, None].expand(-1, len(STATES)))


@cache
def rollouts(cut: bool = False) -> Rollouts:
    """The 1000 responses; all cut at their first token if asked."""
    responses = [y[:1] if cut else y for y in RESPONSES]
    visited = [y[:i] for y in responses for i in range(len(y) + 1)]
    return Rollouts(
        states=torch.eye(len(STATES))[[STATES.index(s) for s in visited]],
        tokens=torch.tensor([token for y in responses for token in y]),
        lengths=torch.tensor([len(y) for y in responses]),
        rewards=torch.tensor([[reward_of(y)] for y in responses]),
        ended=torch.tensor([ended(y) for y in responses]),
        prompts=torch.zeros(len(responses), dtype=torch.long),
    )


def value_head(**config: object) -> ValueHead:
    """A head with one free value a state."""
    return ValueHead(_config(architecture="linear", **config))


def q_head(**config: object) -> QHead:
    """A head with one free value a state and next token."""
    sizes = {"rank": len(P), "vocab_size": len(P)}
    return QHead(_config(architecture="lowrank", **sizes, **config))


def _config(**config: object) -> HeadConfig:
    common = {"rewards": ("r",), "shift": (0.0,), "scale": (1.0,), "base_model": "ab3"}
    return HeadConfig(**{**common, "hidden_size": len(STATES), **config})  # type: ignore[arg-type]


def values_of(head: Head) -> dict[Tokens, float]:
    """V of every prefix that ends with a token."""
    data = rollouts()
    with torch.no_grad():
        found = head.rollout_values(data, None, BASE.lm_head)[:, 0].tolist()
    prefixes = [y[:i] for y in RESPONSES for i in range(1, len(y) + 1)]
    return dict(zip(prefixes, found, strict=True))


assert len(RESPONSES) == 1000
assert max(len(s) for s in STATES) == LENGTH
