"""Several rewards as one, so that no single one's mistakes are searched for (arXiv 2310.02743)."""

import asyncio
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from cdserve.scoring.reward import Response, Reward

Aggregate = Callable[[Sequence[float]], float]


def lower_bound(c: float) -> Aggregate:
    """mean − c · std, uncertainty-weighted optimisation; std divides by the number of rewards.

    Args:
        c: not negative, how much disagreement counts against a response.
    """
    return lambda values: statistics.fmean(values) - c * statistics.pstdev(values)


AGGREGATES: Mapping[str, Aggregate] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
}


class Ensemble(Reward):
    """An aggregate of other rewards, each standardised by its own terms.

    Args:
        of: the rewards, by name.
        aggregate: of their values for one response.
    """

    kind: ClassVar[str] = "ensemble"

    def __init__(self, of: Mapping[str, Reward], aggregate: Aggregate) -> None:
        self._of = of
        self._aggregate = aggregate
        self.prefixes = all(reward.prefixes for reward in of.values())
        self.reads_text = any(reward.reads_text for reward in of.values())
        self.reads_values = any(reward.reads_values for reward in of.values())
        self.models = frozenset().union(*(reward.models for reward in of.values()))

    async def score(self, responses: Sequence[Response]) -> list[float]:
        found = await asyncio.gather(*(_standardised(r, responses) for r in self._of.values()))
        return [self._aggregate(values) for values in zip(*found, strict=True)]


async def _standardised(reward: Reward, responses: Sequence[Response]) -> list[float]:
    return [reward.terms.standardised(value) for value in await reward.score(responses)]
