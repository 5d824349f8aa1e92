"""Rejection sampling: exact draws from p exp(r / η) / Z, where the highest reward is known."""

import math
import random
from collections.abc import AsyncGenerator, Iterable, Sequence
from itertools import repeat
from typing import Literal

from pydantic import Field

from cdserve import kl
from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.registry import decoder
from cdserve.decoders.search import search
from cdserve.decoders.selection import Argmax, Select
from cdserve.errors import ScoringError
from cdserve.policy import FIELD, Limits, SearchPolicy, at_most

BATCH = 8
"""Responses drawn at once."""


class RejectionPolicy(SearchPolicy):
    """Samples whole responses until one is accepted, with probability exp((r - r_max) / eta).

    It then has the law p exp(r / eta) / Z exactly. If none of ``max_draws`` is accepted, the one
    with the highest reward is returned, and the report says so.
    """

    method: Literal["rejection"]
    eta: float = Field(ge=1e-6, le=1e12, description="Units of the reward a nat.")
    r_max: float = Field(
        ge=-1e12, le=1e12, description="No weighted sum of the rewards is above it."
    )
    max_draws: int = Field(ge=1, description="Responses drawn at most for each one returned.")

    @property
    def width(self) -> int:
        return self.max_draws

    def check_limits(self, limits: Limits) -> None:
        at_most(f"{FIELD}.max_draws", self.max_draws, limits.max_n)


class Threshold(Select):
    """Takes the first candidate accepted, with probability min(1, exp((score - threshold) / η)).

    It takes the best of ``max_draws`` if none is.

    Args:
        eta: η, in units of the score.
        thresholds: one a decision; scores from there on are always accepted.
        max_draws: candidates after which the best is taken.
        rng: the source of one uniform number a candidate.
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
        self._taken: int | None = None

    def choose(self, scores: Sequence[float]) -> int | None:
        if self._settled:  # these are of a new decision
            self._threshold, self._log_u = next(self._thresholds), []
        while len(self._log_u) < len(scores):
            self._log_u.append(math.log1p(-self._rng.random()))
        drawn = enumerate(zip(self._log_u, scores, strict=True))
        accepted = (i for i, (log_u, score) in drawn if log_u <= self._log_acceptance(score))
        self._taken = next(accepted, None)
        self._settled = self._taken is not None or len(scores) >= self._max_draws
        if self._taken is None and self._settled:
            return Argmax().choose(scores)
        return self._taken

    def accepted(self) -> bool:
        return self._taken is not None

    def kl_bound(self, count: int) -> float:
        return kl.best_of_n_bound(self._max_draws)  # draws left undone would be draws not taken

    def kl_estimate(self, scores: Sequence[float], logprob: float | None) -> float:
        if self._taken is None:
            return self.kl_bound(len(scores))
        rate = math.fsum(math.exp(self._log_acceptance(score)) for score in scores) / len(scores)
        return self._log_acceptance(scores[self._taken]) - math.log(rate)

    def kl_estimator(self, logprob: float | None) -> str:
        return "bound" if self._taken is None else "k1"

    def _log_acceptance(self, score: float) -> float:
        return min(0.0, (score - self._threshold) / self._eta)


class Accept(Threshold):
    """The threshold is the highest reward, so what is accepted has the law p exp(r / η) / Z."""

    def __init__(self, eta: float, r_max: float, max_draws: int, rng: random.Random) -> None:
        super().__init__(eta, repeat(r_max), max_draws, rng)
        self._r_max = r_max

    def choose(self, scores: Sequence[float]) -> int | None:
        top = max(scores)
        if top > self._r_max and not math.isclose(top, self._r_max, rel_tol=1e-9, abs_tol=1e-9):
            raise ScoringError(
                f"a response's score is {top:.9g}, and {FIELD}.r_max is {self._r_max:.9g}; "
                "accepted responses have the law asked for only where no score is above it"
            )
        return super().choose(scores)


@decoder("rejection")
class Rejection:
    """The search with a rule that may take none; whole responses, a batch at a time."""

    policy = RejectionPolicy

    @classmethod
    def run(
        cls, policy: RejectionPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        full, rest = divmod(policy.max_draws, BATCH)
        select = Accept(policy.eta, policy.r_max, policy.max_draws, random.Random(seed))
        batches = [BATCH] * full + ([rest] if rest else [])
        return search(proposal, k=batches, m=None, select=select)
