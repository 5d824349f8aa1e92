"""Best-of-Poisson: the best of 1 + Poisson(μ) whole responses (arXiv 2506.19248)."""

import math
import random
from collections.abc import AsyncGenerator
from typing import Literal

from pydantic import Field

from cdserve import kl
from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.registry import decoder
from cdserve.decoders.search import search
from cdserve.decoders.selection import Argmax
from cdserve.errors import PolicyError, safe_repr
from cdserve.policy import FIELD, Limits, SearchPolicy

CUT = 1e-6
"""Chance that more responses would be drawn than the most there can be."""
MAX_MU = 10_000.0


class BestOfPoissonPolicy(SearchPolicy):
    """Samples 1 + Poisson(``mu``) whole responses and returns the one with the highest reward.

    Of continuous rewards' quantiles u the density is (mu u + 1) exp(mu (u - 1)), which is within
    8e-4 nats of the best there is at the same expected reward.
    """

    method: Literal["best_of_poisson"]
    mu: float = Field(
        ge=0, le=MAX_MU, description="Responses drawn for each one returned, on average, less one."
    )

    @property
    def width(self) -> int:
        return draws(self.mu, 1.0)

    def check_limits(self, limits: Limits) -> None:
        if self.width > limits.max_n:
            raise PolicyError(
                f"{FIELD}.mu",
                f"is {safe_repr(self.mu)}, which draws up to {self.width} responses; this server "
                f"accepts up to {limits.max_n}, a mu of 0 to {largest(limits.max_n)}",
            )


class BestOfPoissonArgmax(Argmax):
    """Takes the highest score; the KL is that of all the numbers that could have been drawn."""

    def __init__(self, mu: float) -> None:
        self._mu = mu

    def kl_bound(self, count: int) -> float:
        return kl.best_of_poisson_bound(self._mu)

    def kl_estimate(self, scores: object, logprob: float | None) -> float:
        if logprob is None:
            return kl.best_of_poisson_bound(self._mu)
        return kl.best_of_poisson_estimate(logprob, self._mu)

    def kl_estimator(self, logprob: float | None) -> str:
        return "bound" if logprob is None else "epsilon_mu"


@decoder("best_of_poisson")
class BestOfPoisson:
    """Best-of-n with n drawn for every response."""

    policy = BestOfPoissonPolicy

    @classmethod
    def run(
        cls, policy: BestOfPoissonPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        n = draws(policy.mu, random.Random(seed).random())
        return search(proposal, k=n, m=None, select=BestOfPoissonArgmax(policy.mu))


def draws(mu: float, u: float) -> int:
    """The quantile of 1 + Poisson(μ) at u in [0, 1], u cut to 1 - ``CUT``."""
    log_p, below, k = -mu, math.exp(-mu), 0
    while below < min(u, 1.0 - CUT):
        k += 1
        log_p += math.log(mu / k)
        below += math.exp(log_p)
    return 1 + k


def largest(max_n: int) -> float:
    """The largest μ that never draws more than ``max_n``, rounded down to three decimals."""
    low, high = 0.0, MAX_MU
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if draws(middle, 1.0) <= max_n else (low, middle)
    return math.floor(low * 1000) / 1000
