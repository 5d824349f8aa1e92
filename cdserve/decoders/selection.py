"""Selection rules: which of K candidates is selected, and the KL of the selection.

A rule sees scores only. Candidates are drawn i.i.d., so the fixed tie rule (the first drawn wins)
selects each of several tied candidates equally often; and whatever the rule, its KL from p is at
most best-of-n's bound for the same number of draws (``kl.best_of_n_bound``).
"""

import math
import random
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cdserve import kl
from cdserve.decoders.candidate import Prefix, Score
from cdserve.policy import (
    PessimisticSelection,
    SelectingPolicy,
    SoftmaxSelection,
    WorstCaseSelection,
)

_MAX_STEPS = 300
_PRECISION = 1e-6
_ROUNDING = 1e-12
_WEAKEST = 1e-9


class SelectionRule(Protocol):
    """A selection rule. Rules subclass it, or have all of its methods."""

    def rank(self, scores: Sequence[Score]) -> Sequence[float]:
        """Numbers that the candidates are compared by; the weighted sums by default."""
        return [score.total for score in scores]

    def choose(self, scores: Sequence[float]) -> int | None:
        """Index of the selected candidate, by the result of ``rank``; None to draw more first."""
        ...

    def keep(self, scores: Sequence[float], prefixes: Sequence[Prefix]) -> Sequence[int] | None:
        """Indices that the search goes on with, the best first; None to draw more first.

        By default the one that ``choose`` gives.

        Args:
            scores: the result of ``rank``.
            prefixes: the candidates with their prefixes, in the same order.
        """
        chosen = self.choose(scores)
        return None if chosen is None else [chosen]

    def accepted(self) -> bool | None:
        """Whether the last selected candidate passed the rule's test; None without a test."""
        return None

    def exact(self) -> bool | None:
        """Whether the last selected candidate is a draw from the distribution asked for.

        None for rules that do not draw from one.
        """
        return None

    def kl_bound(self, count: int) -> float:
        """Upper bound on the KL of selecting one of ``count`` i.i.d. draws, in nats."""
        return kl.best_of_n_bound(count)

    def kl_estimate(self, scores: Sequence[float], logprob: float | None) -> float:
        """Estimate of that KL from one decision, in nats; ``logprob`` is the candidate's log p."""
        ...

    def kl_estimator(self, logprob: float | None) -> str:
        """Name of the estimator, as docs/methods.md lists them."""
        ...


class Argmax(SelectionRule):
    """Selects the highest score, the first drawn of equal ones: best-of-n (arXiv 2401.01879)."""

    def choose(self, scores: Sequence[float]) -> int:
        return max(range(len(scores)), key=scores.__getitem__)

    def kl_estimate(self, scores: Sequence[float], logprob: float | None) -> float:
        if logprob is None:
            return kl.best_of_n_bound(len(scores))
        return kl.best_of_n_estimate(logprob, len(scores))

    def kl_estimator(self, logprob: float | None) -> str:
        return "bound" if logprob is None else "epsilon_n"


class RandomisedRule(SelectionRule):
    """Base of rules that draw the index, candidate i with probability ``weights``[i].

    Strength → 0 is argmax, → ∞ is the proposal itself.

    Args:
        strength: strength of the randomness, in units of the score.
        rng: source of one uniform number per decision.
    """

    def __init__(self, strength: float, rng: random.Random) -> None:
        self._strength = strength
        self._rng = rng

    @abstractmethod
    def weights(self, scores: Sequence[float]) -> Sequence[float]:
        """Probability of each candidate."""

    def choose(self, scores: Sequence[float]) -> int:
        return self._rng.choices(range(len(scores)), self.weights(scores))[0]

    def kl_estimate(self, scores: Sequence[float], logprob: float | None) -> float:
        # KL of the index from uniform, given the draws; its mean bounds the KL of the selection.
        entropy = -sum(w * math.log(w) for w in self.weights(scores) if w > 0)
        return min(math.log(len(scores)) - entropy, kl.best_of_n_bound(len(scores)))

    def kl_estimator(self, logprob: float | None) -> str:
        return "selection_entropy"


class Softmax(RandomisedRule):
    """Selects i with probability softmax(score / λ)_i: soft best-of-n (arXiv 2505.03156).

    λ is the strength.
    """

    def weights(self, scores: Sequence[float]) -> list[float]:
        top = max(scores)
        unnormalised = [math.exp((score - top) / self._strength) for score in scores]
        total = sum(unnormalised)
        return [weight / total for weight in unnormalised]


class Pessimistic(RandomisedRule):
    """Selects i with probability max(0, score_i - l) / (K β) (arXiv 2503.21878).

    β is the strength; l makes the probabilities sum to one, so that no candidate counts for more
    than a χ² penalty on the drift allows.
    """

    def weights(self, scores: Sequence[float]) -> list[float]:
        level = pessimistic_level(scores, self._strength)
        shares = [max(0.0, score - level) for score in scores]
        total = math.fsum(shares)
        return [share / total for share in shares]


def pessimistic_level(scores: Sequence[float], beta: float) -> float:
    """Level l with mean max(0, (score - l) / β) = 1, in units of the score."""
    total = len(scores) * beta
    order = sorted(scores, reverse=True)
    for count, (score, following) in enumerate(pairwise([*order, -math.inf]), 1):
        # The ``count`` highest are above the level as soon as the next one is not.
        above = math.fsum(best - score for best in order[:count])
        level = score - (total - above) / count
        if level >= following:
            return level
    raise AssertionError("no score is below -inf")


class OrderDependentRule(Argmax):
    """Base of rules under which the order of the responses depends on the draws.

    The ε_n estimator needs a fixed order, so the bound is all that is known of the KL.
    """

    def kl_estimate(self, scores: Sequence[float], logprob: float | None) -> float:
        return self.kl_bound(len(scores))

    def kl_estimator(self, logprob: float | None) -> str:
        return "bound"


class KeepSeveral(OrderDependentRule):
    """Base of rules that keep several candidates: the highest scores, ties by order of drawing.

    Which of them is selected depends on later draws.
    """

    def keep(self, scores: Sequence[float], prefixes: Sequence[Prefix]) -> Sequence[int]:
        """Indices of the ``width`` highest scores."""
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        return order[: self.width(len(scores))]

    @abstractmethod
    def width(self, count: int) -> int:
        """Number of candidates kept out of ``count``."""


class Beam(KeepSeveral):
    """Keeps W prefixes: beam search (arXiv 2405.19262).

    The bound for a response of B blocks is log W + B log K: the expected number of times that a
    prefix is drawn is at most W K^B times its probability, since every kept prefix has K
    continuations.

    Args:
        beams: W.
    """

    def __init__(self, beams: int) -> None:
        self._beams = beams

    def width(self, count: int) -> int:
        return self._beams

    def kl_bound(self, count: int) -> float:
        return math.log(count)  # the first decision has W K draws


class WorstCase(OrderDependentRule):
    """Selects the highest Σ w_g V_g at the worst w of the simplex: RMOD (arXiv 2503.08796).

    V_g are the parts of the scores. If a reward failed and the operator's settings let the others
    decide, candidates are compared by their weighted sums.

    Args:
        strength: λ, in 1 / units of V_g.
    """

    def __init__(self, strength: float) -> None:
        self._strength = strength

    def rank(self, scores: Sequence[Score]) -> Sequence[float]:
        if any(score.failed for score in scores):
            return super().rank(scores)
        values = np.array([list(score.parts.values()) for score in scores])
        ranks: list[float] = (values @ worst_weights(values, self._strength)).tolist()
        return ranks


def worst_weights(values: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """argmin over the simplex of log mean_k exp(λ Σ_g w_g V_g(z_k)), by exponentiated gradient.

    The function is convex in w; if several w are minimal, the result is one of them. The iteration
    stops at a duality gap of 1e-6 of the values' spread, or after 300 steps, which only a λ far
    above 10 / spread takes.

    Args:
        values: V [candidates, objectives].
        strength: λ, in 1 / units of V.
    """
    log_w: NDArray[np.float64] = np.full(values.shape[1], -np.log(values.shape[1]))
    spread = float(np.ptp(values))
    if spread == 0.0:
        return np.exp(log_w)
    scaled, strength = (values - values.min()) / spread, max(strength * spread, _WEAKEST)
    height, slope = _soft_maximum(scaled, log_w, strength)
    step = 1.0
    for _ in range(_MAX_STEPS):
        w = np.exp(log_w)
        if w @ slope - slope.min() <= _PRECISION:
            break
        new_log_w = log_w - step * slope
        new_log_w -= np.logaddexp.reduce(new_log_w)
        new_w = np.exp(new_log_w)
        # The step is short enough if the tangent plus KL(new_w ‖ w) / step is above the function.
        ceiling = height + slope @ (new_w - w) + new_w @ (new_log_w - log_w) / step
        new_height, new_slope = _soft_maximum(scaled, new_log_w, strength)
        if new_height <= ceiling + _ROUNDING:
            log_w, height, slope, step = new_log_w, new_height, new_slope, step * 2.0
        else:
            step /= 2.0
    return w


def _soft_maximum(
    values: NDArray[np.float64], log_w: NDArray[np.float64], strength: float
) -> tuple[float, NDArray[np.float64]]:
    """(log mean_k exp(λ Σ_g w_g V_g(z_k))) / λ, and its gradient in w."""
    totals = values @ np.exp(log_w)
    top = float(totals.max())
    exponents = strength * (totals - top)
    shares = np.exp(exponents)
    slope: NDArray[np.float64] = shares @ values / shares.sum()
    return top + math.log1p(float(np.expm1(exponents).mean())) / strength, slope


def rule(policy: SelectingPolicy, seed: int | None) -> SelectionRule:
    """Selection rule of a policy; ``seed`` seeds its draws, None for fresh randomness."""
    selection, weights = policy.selection, policy.rewards or {}
    if isinstance(selection, SoftmaxSelection):
        return Softmax(selection.softmax, random.Random(seed))
    if isinstance(selection, PessimisticSelection):
        return Pessimistic(selection.pessimistic, random.Random(seed))
    if isinstance(selection, WorstCaseSelection) and sum(map(bool, weights.values())) > 1:
        return WorstCase(selection.worst_case.strength)
    return Argmax()  # the worst case of a single objective too is the weighted sum
