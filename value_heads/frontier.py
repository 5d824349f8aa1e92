"""Rewards that best-of-n earns by weighted sums of a head's values, measured before serving."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from .heads import Head, ValueHead
from .kernels import PackedHeads, operations, runs_on
from .metrics import ResponseGroups
from .rollouts import Shards

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of the first of two rewards."""
_ROWS = 1024
"""Responses scored in one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """Rewards of the responses that the highest weighted sum of two values selects.

    Attributes:
        shares: weights of the two values in units of their rewards' standard deviations; their sum
            is 1.
        weights: weights of the two values in units of the rewards: share / standard deviation.
        earned: mean of every reward over prompts.
    """

    shares: dict[str, float]
    weights: dict[str, float]
    earned: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """Rewards of the selected responses as a function of the weights that select them.

    Attributes:
        prompts: number of prompts with two responses or more.
        responses: mean number of responses to such a prompt: the n of best-of-n.
        chance: mean of every reward over a prompt's responses.
        points: five points for each pair of rewards, from the first alone to the second alone.
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

    A linear head or an MLP of the state alone is read again, by the operation that scores while
    serving. For other heads the given values are weighted.

    Args:
        values, rewards: [B, G], at the last tokens of the responses that ended, on the head's
            device.
        prompts: int64 [B], the prompt of each response.

    Returns:
        None if no prompt has two responses, or if fewer than two rewards vary.
    """
    names, spread = head.config.rewards, rewards.std(0, correction=0)
    varying = [g for g, deviation in enumerate(spread.tolist()) if deviation > 0]
    groups = ResponseGroups.from_ids(prompts)
    if groups is None or len(varying) < 2:
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
        earned = rewards[groups.best(sums)].mean(0)
        points.append(
            FrontierPoint(
                shares=_named(row, names, pair),
                weights=_named(own, names, pair),
                earned=_named(earned, names),
            )
        )
    counts = groups.counts
    each = rewards[groups.members].where(groups.inside[:, :, None], 0.0).sum(1) / counts[:, None]
    return Frontier(
        prompts=len(counts),
        responses=float(counts.double().mean()),
        chance=_named(each.mean(0), names),
        points=tuple(points),
    )


def _weighted(head: Head, test: Shards, values: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums [P, B] of the values, for weights [P, G]."""
    if not isinstance(head, ValueHead) or not PackedHeads.can_pack(head):
        return weights @ values.T
    packed, device = PackedHeads.from_heads([head]), head.shift.device
    score = operations(runs_on(device)).score
    parts = []
    for shard in test:
        states = shard.states.to(device)
        for rows in torch.split(shard.final.to(device), _ROWS):
            of_rows = weights.float()[:, None].repeat(1, len(rows), 1)
            sums = [score(states, rows, packed, own)[1] for own in of_rows]
            parts.append(torch.stack([total for total in sums if total is not None]))
    return torch.cat(parts, dim=1)


def _named(
    numbers: Tensor, names: Sequence[str], places: Sequence[int] | None = None
) -> dict[str, float]:
    chosen = range(len(names)) if places is None else places
    return {names[g]: float(numbers[g]) for g in chosen}
