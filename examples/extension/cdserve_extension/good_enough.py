"""Good enough: responses are drawn, a few at a time, until one has the score asked for."""

from collections.abc import AsyncGenerator, Sequence
from typing import Literal

from pydantic import Field

from cdserve import kl
from cdserve.decoders import Decision, Proposal, SelectionRule, search
from cdserve.policy import FIELD, Limits, SearchPolicy, at_most


class GoodEnoughPolicy(SearchPolicy):
    """Draws whole responses, ``batch`` at once, until the best so far has the score ``threshold``.

    If none of ``max_draws`` has it, the best of them is returned, and the report says so.
    """

    method: Literal["good_enough"]
    threshold: float = Field(description="The weighted sum of the rewards that is enough.")
    max_draws: int = Field(ge=1, description="Responses drawn at most for each one returned.")
    batch: int = Field(default=4, ge=1, description="Responses drawn at once.")

    @property
    def width(self) -> int:
        """Most candidates; the server bounds what a request may cost by it."""
        return self.max_draws

    def check_limits(self, limits: Limits) -> None:
        """Refuses what is beyond the operator's limit for whole responses."""
        at_most(f"{FIELD}.max_draws", self.max_draws, limits.max_n)


class Enough(SelectionRule):
    """Takes the best so far once it is good enough, or once all draws are made.

    What is returned is one of ``max_draws`` i.i.d. draws, made or left undone, so best-of-n's bound
    on the KL holds for their number.
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
    """cdserve's search over whole responses, with a rule that may ask for more of them."""

    policy = GoodEnoughPolicy

    @classmethod
    def run(
        cls, policy: GoodEnoughPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        """Decodes one response; the one decision is made once a draw is taken."""
        full, rest = divmod(policy.max_draws, policy.batch)
        draws = [policy.batch] * full + ([rest] if rest else [])
        select = Enough(policy.threshold, policy.max_draws)
        return search(proposal, k=draws, m=None, select=select)
