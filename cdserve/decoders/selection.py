"""Selection rules: which of K candidates is taken, and what that costs in KL.

A rule sees scores only. Candidates are drawn i.i.d., so the fixed tie rule (the first drawn wins)
takes each of several tied candidates equally often.
"""

import math
import random
from collections.abc import Sequence
from typing import Literal, Protocol

from cdserve import kl
from cdserve.policy import SoftmaxSelection


class Select(Protocol):
    """A selection rule."""

    def choose(self, scores: Sequence[float]) -> int:
        """The index taken."""
        ...

    def kl_bound(self, count: int) -> float:
        """Bound on the KL of taking one of ``count`` i.i.d. draws, in nats."""
        ...

    def kl_estimate(self, scores: Sequence[float], logprob: float | None) -> float:
        """Estimate of it from one decision, in nats; ``logprob`` is log p of the draw taken."""
        ...

    def kl_estimator(self, logprob: float | None) -> str:
        """Name of that estimate: ``epsilon_n``, ``bound`` or ``selection_entropy``."""
        ...


class Argmax:
    """Takes the highest score; of equal ones the first drawn. Best-of-n (arXiv 2401.01879)."""

    def choose(self, scores: Sequence[float]) -> int:
        return max(range(len(scores)), key=scores.__getitem__)

    def kl_bound(self, count: int) -> float:
        return kl.best_of_n_bound(count)

    def kl_estimate(self, scores: Sequence[float], logprob: float | None) -> float:
        if logprob is None:
            return kl.best_of_n_bound(len(scores))
        return kl.best_of_n_estimate(logprob, len(scores))

    def kl_estimator(self, logprob: float | None) -> str:
        return "bound" if logprob is None else "epsilon_n"


class Softmax:
    """Takes candidate i with probability softmax(score / λ): soft best-of-n (arXiv 2505.03156).

    λ → 0 is argmax, λ → ∞ is the proposal itself.

    Args:
        temperature: λ, in units of the score.
        rng: the source of the one uniform number a decision needs.
    """

    def __init__(self, temperature: float, rng: random.Random) -> None:
        self._temperature = temperature
        self._rng = rng

    def choose(self, scores: Sequence[float]) -> int:
        return self._rng.choices(range(len(scores)), self._weights(scores))[0]

    def kl_bound(self, count: int) -> float:
        # The draw's density over score quantiles is increasing and is majorised by best-of-n's.
        return kl.best_of_n_bound(count)

    def kl_estimate(self, scores: Sequence[float], logprob: float | None) -> float:
        # The KL of the index from uniform, given the draws; its mean bounds that of the draw taken.
        weights = self._weights(scores)
        entropy = -sum(w * math.log(w) for w in weights if w > 0)
        return min(math.log(len(scores)) - entropy, kl.best_of_n_bound(len(scores)))

    def kl_estimator(self, logprob: float | None) -> str:
        return "selection_entropy"

    def _weights(self, scores: Sequence[float]) -> list[float]:
        top = max(scores)
        unnormalised = [math.exp((score - top) / self._temperature) for score in scores]
        total = sum(unnormalised)
        return [weight / total for weight in unnormalised]


def rule(selection: Literal["argmax"] | SoftmaxSelection, seed: int | None) -> Select:
    """The rule a policy asks for; ``seed`` seeds what it draws, None for fresh randomness."""
    if selection == "argmax":
        return Argmax()
    return Softmax(selection.softmax, random.Random(seed))
