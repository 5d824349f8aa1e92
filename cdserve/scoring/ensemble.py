"""Ensembles of rewards, against over-optimisation of any single one (arXiv 2310.02743)."""

import asyncio
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from cdserve.scoring.reward import Response, Reward

Aggregate = Callable[[Sequence[float]], float]


def lower_bound(c: float) -> Aggregate:
    """mean − c · std, uncertainty-weighted optimisation; std divides by the number of rewards.

    Args:
        c: weight of the rewards' disagreement, not negative.
    """
    return lambda values: statistics.fmean(values) - c * statistics.pstdev(values)


AGGREGATES: Mapping[str, Aggregate] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
}


class Ensemble(Reward):
    """An aggregate of other rewards, each standardised by its own options.

    Args:
        of: the combined rewards, by name.
        aggregate: function of their values for one response.
    """

    kind: ClassVar[str] = "ensemble"

    def __init__(self, of: Mapping[str, Reward], aggregate: Aggregate) -> None:
        self._of = of
        self._aggregate = aggregate
        self.prefixes = all(reward.prefixes for reward in of.values())
        self.reads_text = any(reward.reads_text for reward in of.values())
        self.reads_values = any(reward.reads_values for reward in of.values())
        self.token_stats = frozenset().union(*(reward.token_stats for reward in of.values()))

    async def score(self, responses: Sequence[Response]) -> list[float]:
        rewards = self._of.values()
        values = await asyncio.gather(*(_standardised(each, responses) for each in rewards))
        return [self._aggregate(of_response) for of_response in zip(*values, strict=True)]


async def _standardised(reward: Reward, responses: Sequence[Response]) -> list[float]:
    return [reward.options.standardised(value) for value in await reward.score(responses)]
