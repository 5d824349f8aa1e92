"""Best-of-Poisson: the best of 1 + Poisson(μ) whole responses (arXiv 2506.19248)."""

import math
import random
from collections.abc import AsyncGenerator
from typing import ClassVar, Literal

from pydantic import Field

from cdserve import kl
from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.registry import decoder
from cdserve.decoders.search import search
from cdserve.decoders.selection import Argmax
from cdserve.errors import PolicyError, safe_repr
from cdserve.policy import FIELD, Limits, SearchPolicy

CUT = 1e-6
"""Probability cut off the upper tail of the number of responses."""
MAX_MU = 10_000.0


class BestOfPoissonPolicy(SearchPolicy):
    """Samples 1 + Poisson(``mu``) whole responses and returns the one with the highest reward.

    For continuous rewards, the density over reward quantiles u is (mu u + 1) exp(mu (u - 1)). Its
    KL is within 8e-4 nats of the lowest possible at the same expected reward.
    """

    method: Literal["best_of_poisson"]
    mu: float = Field(
        ge=0,
        le=MAX_MU,
        description="Mean number of responses drawn per response returned, less one.",
    )

    whole_responses: ClassVar[bool] = True

    @property
    def width(self) -> int:
        return poisson_quantile(self.mu, 1.0)

    def check_limits(self, limits: Limits) -> None:
        if self.width > limits.max_n:
            raise PolicyError(
                f"{FIELD}.mu",
                f"is {safe_repr(self.mu)}, which draws up to {self.width} responses; this server "
                f"accepts up to {limits.max_n}, a mu of 0 to {largest_mu(limits.max_n)}",
                reason="limit",
            )


class BestOfPoissonArgmax(Argmax):
    """Selects the highest score; its KL is over all numbers of responses that could be drawn."""

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
    """Best-of-n with a random n for each response."""

    policy = BestOfPoissonPolicy

    @classmethod
    def run(
        cls, policy: BestOfPoissonPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        n = poisson_quantile(policy.mu, random.Random(seed).random())
        return search(proposal, k=n, m=None, select=BestOfPoissonArgmax(policy.mu))


def poisson_quantile(mu: float, u: float) -> int:
    """Quantile of 1 + Poisson(μ) at u in [0, 1], with u at most 1 - ``CUT``."""
    log_p, below, k = -mu, math.exp(-mu), 0
    while below < min(u, 1.0 - CUT):
        k += 1
        log_p += math.log(mu / k)
        below += math.exp(log_p)
    return 1 + k


def largest_mu(max_n: int) -> float:
    """Largest μ that never draws more than ``max_n`` responses, rounded down to three decimals."""
    low, high = 0.0, MAX_MU
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if poisson_quantile(middle, 1.0) <= max_n else (low, middle)
    return math.floor(low * 1000) / 1000
