"""Cascade reward sampling: draw blocks until one passes a rising threshold (arXiv 2406.16306)."""

import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from itertools import count
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.registry import decoder
from cdserve.decoders.rejection import Threshold
from cdserve.decoders.search import search
from cdserve.decoders.until import UntilField
from cdserve.decoders.width import WidthField


class CardsPolicy(WidthField, UntilField):
    """Draws blocks of ``m`` tokens until one is accepted.

    The probability of acceptance is min(1, exp((V - threshold) / beta)). The threshold rises from
    (1 - alpha) V(prompt) + alpha r_star to r_star over ``rise`` blocks. If none of ``max_draws``
    blocks is accepted, the one with the highest value is selected.
    """

    method: Literal["cards"]
    m: int = Field(ge=1, description="Block length in tokens; with `until` the most.")
    r_star: float = Field(ge=-1e12, le=1e12, description="Target value.")
    beta: float = Field(default=0.7, ge=1e-6, le=1e12, description="Reward units per nat.")
    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="First threshold: 0 is the prompt's value, 1 is r_star.",
    )
    rise: int = Field(default=8, ge=1, description="Blocks until the threshold reaches r_star.")
    max_draws: int = Field(default=20, ge=1, description="Most blocks drawn per block kept.")
    k: int = Field(default=4, ge=1, validate_default=True, description="Blocks drawn at a time.")

    scores_prefixes: ClassVar[bool] = True
    width_field: ClassVar[str] = "max_draws"
    width_limit: ClassVar[str] = "max_k"

    @field_validator("k")
    @classmethod
    def _divides_the_draws(cls, k: int, info: ValidationInfo) -> int:
        draws = info.data.get("max_draws", k)
        if draws % k:
            raise ValueError(f"it must divide max_draws, which is {draws}")
        return k


def thresholds(policy: CardsPolicy, value: float) -> Iterator[float]:
    """Thresholds min(r*, r0 + t (r* - r0) / rise) of the decisions t = 0, 1, ..., in reward units.

    Args:
        policy: r*, α and the rise.
        value: r(x), V of the prompt; r0 = (1 - α) r(x) + α r*.
    """
    target = policy.r_star
    start = (1.0 - policy.alpha) * value + policy.alpha * target
    return (min(target, start + t * (target - start) / policy.rise) for t in count())


@decoder("cards")
class Cards:
    """The search with blocks, and a rule that may reject all drawn ones."""

    policy = CardsPolicy

    @classmethod
    async def run(
        cls, policy: CardsPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        (prompt,) = await proposal.score([()])
        rising = thresholds(policy, prompt.total)
        select = Threshold(policy.beta, rising, policy.max_draws, random.Random(seed))
        async with aclosing(search(proposal, k=policy.k, m=policy.m, select=select)) as decisions:
            async for decision in decisions:
                yield decision
