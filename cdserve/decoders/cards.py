"""Cascade reward sampling: blocks drawn until one passes a rising threshold (arXiv 2406.16306)."""

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import ClassVar, Literal

from pydantic import Field

from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.registry import decoder
from cdserve.decoders.rejection import Threshold
from cdserve.decoders.search import search
from cdserve.decoders.selection import Select
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
    k: int = Field(default=4, ge=1, description="Blocks drawn at once.")

    scores_prefixes: ClassVar[bool] = True

    @property
    def width(self) -> int:
        return max(self.max_draws, self.k)

    def check_limits(self, limits: Limits) -> None:
        at_most(f"{FIELD}.max_draws", self.max_draws, limits.max_k)
        at_most(f"{FIELD}.k", self.k, limits.max_k)


class RisingThreshold(Select):
    """A threshold a decision, min(r*, r0 + t (r* - r0) / rise) of decision t, from 0.

    Args:
        policy: r*, β, α and how many draws.
        value: r(x), V of the prompt; r0 = (1 - α) r(x) + α r*.
        rng: the source of one uniform number a candidate.
    """

    def __init__(self, policy: CardsPolicy, value: float, rng: random.Random) -> None:
        self._policy = policy
        self._start = (1.0 - policy.alpha) * value + policy.alpha * policy.r_star
        self._rng = rng
        self._decisions = 0
        self._now = self._next()
        self._settled = False

    def threshold(self, t: int) -> float:
        """Of decision t."""
        target = self._policy.r_star
        return min(target, self._start + t * (target - self._start) / self._policy.rise)

    def choose(self, scores: Sequence[float]) -> int | None:
        if self._settled:
            self._now = self._next()
        chosen = self._now.choose(scores)
        self._settled = chosen is not None
        return chosen

    def accepted(self) -> bool:
        return self._now.accepted()

    def kl_bound(self, count: int) -> float:
        return self._now.kl_bound(count)

    def kl_estimate(self, scores: Sequence[float], logprob: float | None) -> float:
        return self._now.kl_estimate(scores, logprob)

    def kl_estimator(self, logprob: float | None) -> str:
        return self._now.kl_estimator(logprob)

    def _next(self) -> Threshold:
        threshold = self.threshold(self._decisions)
        self._decisions += 1
        return Threshold(self._policy.beta, threshold, self._policy.max_draws, self._rng)


@decoder("cards")
class Cards:
    """The search with blocks and a rule that may take none of those drawn."""

    policy = CardsPolicy

    @classmethod
    async def run(
        cls, policy: CardsPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        (prompt,) = await proposal.score([()])
        select = RisingThreshold(policy, prompt.total, random.Random(seed))
        async with aclosing(search(proposal, k=policy.k, m=policy.m, select=select)) as decisions:
            async for decision in decisions:
                yield decision
