"""Good enough: draws responses, a few at a time, until one reaches a given score."""

from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from cdserve import kl
from cdserve.decoders import Decision, Proposal, SelectionRule, search
from cdserve.policy import FIELD, Limits, SearchPolicy, at_most


class GoodEnoughPolicy(SearchPolicy):
    """Draws whole responses, ``batch`` at once, until the best one reaches ``threshold``.

    If none of ``max_draws`` responses reaches it, the best is returned with ``accepted: false``.
    """

    method: Literal["good_enough"]
    threshold: float = Field(description="Sufficient score: weighted sum of the rewards.")
    max_draws: int = Field(
        ge=1, description="Maximum number of responses drawn per returned response."
    )
    batch: int = Field(default=4, ge=1, description="Number of responses drawn at once.")

    whole_responses: ClassVar[bool] = True

    @property
    def width(self) -> int:
        """Most candidates drawn per token of the response, over all draws."""
        return self.max_draws

    def check_limits(self, limits: Limits) -> None:
        """Checks the operator's limit for whole responses."""
        at_most(f"{FIELD}.max_draws", self.max_draws, limits.max_n)


class Enough(SelectionRule):
    """Selects the best response once it reaches the threshold, or after all draws.

    The returned response is one of ``max_draws`` i.i.d. draws, of which the last ones may not have
    been made, so best-of-n's bound on the KL holds with n = ``max_draws``.
    """

    def __init__(self, threshold: float, max_draws: int) -> None:
        self._threshold = threshold
        self._max_draws = max_draws
        self._reached = False

    def choose(self, scores: Sequence[float]) -> int | None:
        best = max(range(len(scores)), key=scores.__getitem__)
        self._reached = scores[best] >= self._threshold
        return best if self._reached or len(scores) >= self._max_draws else None

    def accepted(self) -> bool:
        return self._reached

    def kl_bound(self, count: int) -> float:
        return kl.best_of_n_bound(self._max_draws)

    def kl_estimate(self, scores: Sequence[float], logprob: float | None) -> float:
        return self.kl_bound(len(scores))

    def kl_estimator(self, logprob: float | None) -> str:
        return "bound"


class GoodEnough:
    """cdserve's search over whole responses, with a selection rule that may ask for more."""

    policy = GoodEnoughPolicy

    @classmethod
    def run(
        cls, policy: GoodEnoughPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        """Decodes one response, with a single decision."""
        full, rest = divmod(policy.max_draws, policy.batch)
        draws = [policy.batch] * full + ([rest] if rest else [])
        select = Enough(policy.threshold, policy.max_draws)
        return search(proposal, k=draws, m=None, select=select)
