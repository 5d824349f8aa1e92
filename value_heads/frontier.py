"""What best-of-n earns of each reward by weighted sums of a head's values, before it serves."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from .heads import Head, ValueHead
from .kernels import PackedHeads, operations, runs_on
from .metrics import Choices
from .rollouts import Shards

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Of the first of two rewards."""
_ROWS = 1024
"""Responses scored at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """What the response earns that the highest weighted sum of two values selects.

    Attributes:
        shares: of the two rewards, summing to 1: weights of values in standard deviations.
        weights: of the two rewards, share / standard deviation: of values in units of the rewards.
        earned: mean over prompts of every reward.
    """

    shares: dict[str, float]
    weights: dict[str, float]
    earned: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """What the responses to a prompt earn, by the weights that select one at its last token.

    Attributes:
        prompts: that have two responses or more.
        responses: of one of them, the n, on average.
        chance: of every reward, the mean of a prompt's responses.
        points: five of each pair of rewards, from the first alone to the second alone.
    """

    prompts: int
    responses: float
    chance: dict[str, float]
    points: tuple[FrontierPoint, ...]


@torch.no_grad()
def frontier(
    head: Head, test: Shards, values: Tensor, rewards: Tensor, prompts: Tensor
) -> Frontier | None:
    """Measure a head of several rewards. One shard is in memory at a time.

    A linear head or an MLP is read again, by the operation that scores while serving. Of another
    the given values are weighed.

    Args:
        values, rewards: [B, G], at the last tokens of the responses that ended, on the head's
            device.
        prompts: int64 [B], which prompt each answers.

    Returns:
        None where no prompt has two responses, or fewer than two rewards vary.
    """
    names, spread = head.config.rewards, rewards.std(0, correction=0)
    varying = [g for g, deviation in enumerate(spread.tolist()) if deviation > 0]
    choices = Choices.of(prompts)
    if choices is None or len(varying) < 2:
        return None
    pairs = [(*pair, share) for pair in combinations(varying, 2) for share in SHARES]
    shares = values.new_zeros(len(pairs), len(names))
    for row, (first, second, share) in zip(shares, pairs, strict=True):
        row[first], row[second] = share, 1.0 - share
    weights = torch.where(shares > 0, shares / spread, 0.0)
    points = []
    for (*pair, _), row, own, sums in zip(
        pairs, shares, weights, _weighted(head, test, values, weights), strict=True
    ):
        earned = rewards[choices.best(sums)].mean(0)
        points.append(
            FrontierPoint(
                shares=_named(row, names, pair),
                weights=_named(own, names, pair),
                earned=_named(earned, names),
            )
        )
    counts = choices.counts
    each = rewards[choices.members].where(choices.inside[:, :, None], 0.0).sum(1) / counts[:, None]
    return Frontier(
        prompts=len(counts),
        responses=float(counts.double().mean()),
        chance=_named(each.mean(0), names),
        points=tuple(points),
    )


def _weighted(head: Head, test: Shards, values: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums [P, B] of the values, of P weights [P, G]."""
    if not isinstance(head, ValueHead) or not PackedHeads.packs(head):
        return weights @ values.T
    packed, device = PackedHeads.of([head]), head.shift.device
    score = operations(runs_on(device)).score
    parts = []
    for shard in test:
        states = shard.states.to(device)
        for rows in torch.split(shard.final.to(device), _ROWS):
            of_rows = weights.float()[:, None].repeat(1, len(rows), 1)
            sums = [score(states, rows, packed, own)[1] for own in of_rows]
            parts.append(torch.stack([one for one in sums if one is not None]))
    return torch.cat(parts, dim=1)


def _named(
    numbers: Tensor, names: Sequence[str], places: Sequence[int] | None = None
) -> dict[str, float]:
    chosen = range(len(names)) if places is None else places
    return {names[g]: float(numbers[g]) for g in chosen}
