"""Rejection sampling: exact draws from p exp(r / η) / Z, given an upper bound on the reward."""

import math
import random
from collections.abc import AsyncGenerator, Iterable, Sequence
from itertools import repeat
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from cdserve import kl
from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.registry import decoder
from cdserve.decoders.search import search
from cdserve.decoders.selection import Argmax, SelectionRule
from cdserve.decoders.width import WidthField
from cdserve.policy import SearchPolicy

BATCH = 8
"""Responses drawn at a time."""


class RejectionPolicy(WidthField, SearchPolicy):
    """Samples whole responses until one is accepted, with probability exp((r - r_max) / eta).

    An accepted response has exactly the distribution p exp(r / eta) / Z, and the report has
    ``exact``. It does not if a reward exceeds ``r_max``, or if ``r_max`` is the highest reward of
    ``max_draws`` responses drawn at once (arXiv 2309.06657). If none of ``max_draws`` is accepted,
    the one with the highest reward is returned.
    """

    method: Literal["rejection"]
    eta: float = Field(ge=1e-6, le=1e12, description="Reward units per nat.")
    r_max: Literal["empirical"] | Annotated[float, Field(ge=-1e12, le=1e12)] = Field(
        description="Upper bound on the weighted sum of the rewards; 'empirical' for the highest "
        "of max_draws responses.",
    )
    max_draws: int = Field(ge=1, description="Most responses drawn per response returned.")

    whole_responses: ClassVar[bool] = True
    width_field: ClassVar[str] = "max_draws"
    width_limit: ClassVar[str] = "max_n"


class Threshold(SelectionRule):
    """Selects the first accepted candidate.

    The probability of acceptance is min(1, exp((score - threshold) / η)). If none of ``max_draws``
    candidates is accepted, the best is selected.

    Args:
        eta: η, in units of the score per nat.
        thresholds: one per decision; scores from the threshold on are always accepted.
        max_draws: candidates after which the best is selected.
        rng: source of one uniform number per candidate.
    """

    def __init__(
        self, eta: float, thresholds: Iterable[float], max_draws: int, rng: random.Random
    ) -> None:
        self._eta = eta
        self._thresholds = iter(thresholds)
        self._max_draws = max_draws
        self._rng = rng
        self._settled = True
        self._threshold = math.nan
        self._log_u: list[float] = []
        self._accepted_index: int | None = None

    def choose(self, scores: Sequence[float]) -> int | None:
        # A new decision has fewer candidates than one that the deadline ended.
        if self._settled or len(scores) < len(self._log_u):
            self._threshold, self._log_u = next(self._thresholds), []
        while len(self._log_u) < len(scores):
            self._log_u.append(math.log1p(-self._rng.random()))
        drawn = enumerate(zip(self._log_u, scores, strict=True))
        accepted = (i for i, (log_u, score) in drawn if log_u <= self._log_acceptance(score))
        self._accepted_index = next(accepted, None)
        self._settled = self._accepted_index is not None or len(scores) >= self._max_draws
        if self._accepted_index is None and self._settled:
            return Argmax().choose(scores)
        return self._accepted_index

    def accepted(self) -> bool:
        return self._accepted_index is not None

    def kl_bound(self, count: int) -> float:
        return kl.best_of_n_bound(self._max_draws)  # counts candidates not drawn as rejected

    def kl_estimate(self, scores: Sequence[float], logprob: float | None) -> float:
        if self._accepted_index is None:
            return self.kl_bound(len(scores))
        rate = math.fsum(math.exp(self._log_acceptance(score)) for score in scores) / len(scores)
        return self._log_acceptance(scores[self._accepted_index]) - math.log(rate)

    def kl_estimator(self, logprob: float | None) -> str:
        return "bound" if self._accepted_index is None else "k1"

    def _log_acceptance(self, score: float) -> float:
        return min(0.0, (score - self._threshold) / self._eta)


class ExactRejection(Threshold):
    """Accepts responses with the distribution p exp(r / η) / Z: the threshold is an upper bound.

    Args:
        eta: η, in units of the score per nat.
        r_max: the upper bound; None for the highest score of the candidates.
        max_draws: candidates after which the best is selected.
        rng: source of one uniform number per candidate.
    """

    def __init__(self, eta: float, r_max: float | None, max_draws: int, rng: random.Random) -> None:
        super().__init__(eta, repeat(math.inf if r_max is None else r_max), max_draws, rng)
        self._r_max = r_max
        self._top = -math.inf

    def choose(self, scores: Sequence[float]) -> int | None:
        self._top = max(scores)
        return super().choose(scores)

    def exact(self) -> bool:
        if self._r_max is None or not self.accepted():
            return False
        close = math.isclose(self._top, self._r_max, rel_tol=1e-9, abs_tol=1e-9)
        return close or self._top < self._r_max

    def _log_acceptance(self, score: float) -> float:
        if self._r_max is None:
            return (score - self._top) / self._eta
        return super()._log_acceptance(score)


@decoder("rejection")
class Rejection:
    """The search over whole responses, in batches, with a rule that may reject all of them."""

    policy = RejectionPolicy

    @classmethod
    def run(
        cls, policy: RejectionPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        r_max = None if policy.r_max == "empirical" else policy.r_max
        select = ExactRejection(policy.eta, r_max, policy.max_draws, random.Random(seed))
        at_once = policy.max_draws if r_max is None else BATCH
        full, rest = divmod(policy.max_draws, at_once)
        batches = [at_once] * full + ([rest] if rest else [])
        return search(proposal, k=batches, m=None, select=select)
