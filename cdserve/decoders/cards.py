"""Cascade reward sampling: blocks drawn until one passes a rising threshold (arXiv 2406.16306)."""

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
from cdserve.policy import FIELD, Limits, SearchPolicy, at_most


class CardsPolicy(SearchPolicy):
    """Draws blocks of ``m`` tokens until one is accepted, with min(1, exp((V - threshold) / beta)).

    The threshold rises from (1 - alpha) V(prompt) + alpha r_star to r_star over ``rise`` blocks. Of
    ``max_draws`` blocks of which none is accepted, the one with the highest value is taken.
    """

    method: Literal["cards"]
    m: int = Field(ge=1, description="Block length in tokens.")
    r_star: float = Field(ge=-1e12, le=1e12, description="The value aimed for.")
    beta: float = Field(default=0.7, ge=1e-6, le=1e12, description="Units of the reward a nat.")
    alpha: float = Field(default=0.5, ge=0, le=1, description="Where the threshold begins.")
    rise: int = Field(default=8, ge=1, description="Blocks after which the threshold is r_star.")
    max_draws: int = Field(default=20, ge=1, description="Blocks drawn at most for each one kept.")
    k: int = Field(default=4, ge=1, validate_default=True, description="Blocks drawn at once.")

    scores_prefixes: ClassVar[bool] = True

    @field_validator("k")
    @classmethod
    def _divides_the_draws(cls, k: int, info: ValidationInfo) -> int:
        draws = info.data.get("max_draws", k)
        if draws % k:
            raise ValueError(f"it must divide max_draws, which is {draws}")
        return k

    @property
    def width(self) -> int:
        return self.max_draws

    def check_limits(self, limits: Limits) -> None:
        at_most(f"{FIELD}.max_draws", self.max_draws, limits.max_k)


def rising(policy: CardsPolicy, value: float) -> Iterator[float]:
    """The thresholds: min(r*, r0 + t (r* - r0) / rise) of decision t, from 0.

    Args:
        policy: r*, α and the rise.
        value: r(x), V of the prompt; r0 = (1 - α) r(x) + α r*.
    """
    target = policy.r_star
    start = (1.0 - policy.alpha) * value + policy.alpha * target
    return (min(target, start + t * (target - start) / policy.rise) for t in count())


@decoder("cards")
class Cards:
    """The search with blocks and a rule that may take none of those drawn."""

    policy = CardsPolicy

    @classmethod
    async def run(
        cls, policy: CardsPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        (prompt,) = await proposal.score([()])
        thresholds = rising(policy, prompt.total)
        select = Threshold(policy.beta, thresholds, policy.max_draws, random.Random(seed))
        async with aclosing(search(proposal, k=policy.k, m=policy.m, select=select)) as decisions:
            async for decision in decisions:
                yield decision
