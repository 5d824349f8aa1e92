"""Curves of best-of-n from one pool of scored draws, and where over-optimisation begins."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cdserve import kl

Form = Literal["best_of_n", "rl"]


def best_of_n_mean(scores: ArrayLike, values: ArrayLike, n: int) -> float:
    """The mean of a quantity over best-of-n's choices, from a pool of N ≥ n i.i.d. draws.

    It is the mean over all subsets of n of the pool, so it is unbiased: Σ_i C(i, n−1) / C(N, n) of
    the values in the scores' order. Draws of the same score count for each other.

    Args:
        scores: float [N], what the choice maximises.
        values: float [N], what is averaged: another reward, a length, the scores themselves.
        n: from 1 to N.

    Raises:
        ValueError: the lengths differ, a number is not finite, or ``n`` is out of range.
    """
    r, g = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    if r.ndim != 1 or r.shape != g.shape:
        raise ValueError(f"scores and values must be of one length, got {r.shape} and {g.shape}")
    if not 1 <= n <= len(r):
        raise ValueError(f"n must be from 1 to the pool's {len(r)}, got {n}")
    if not (np.isfinite(r).all() and np.isfinite(g).all()):
        raise ValueError("scores and values must be finite")
    _, level, size = np.unique(r, return_inverse=True, return_counts=True)
    of_level = np.bincount(level, weights=g) / size
    return float(_top_weights(len(r), n) @ of_level[np.sort(level)])


def _top_weights(total: int, n: int) -> NDArray[np.float64]:
    """P(the i-th smallest is the greatest of n taken without replacement), i from 0."""
    log_factorial = np.array([math.lgamma(i + 1) for i in range(total + 1)])
    i = np.arange(n - 1, total)
    log_p = log_factorial[i] - log_factorial[n - 1] - log_factorial[i - n + 1]
    log_p -= log_factorial[total] - log_factorial[n] - log_factorial[total - n]
    weights = np.zeros(total)
    weights[n - 1 :] = np.exp(log_p)
    total_weight: np.float64 = weights.sum()
    return weights / total_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class OverOptimisation:
    """A fit of the true reward's gain over d = √KL (arXiv 2210.10760): it rises, and then falls.

    Attributes:
        form: of best-of-n d (a − b d), of RL d (a − b log d).
        a, b: its coefficients, in units of the reward a √nat.
    """

    form: Form
    a: float
    b: float

    def gain(self, nats: float) -> float:
        """The true reward gained at a KL, in units of the reward."""
        d = math.sqrt(nats)
        if d == 0.0:
            return 0.0
        return d * (self.a - self.b * (d if self.form == "best_of_n" else math.log(d)))

    @property
    def peak(self) -> float:
        """The KL in nats from which on the true reward falls; infinite where it never does."""
        if self.b <= 0:
            return math.inf if self.a > 0 or self.b < 0 else 0.0
        if self.form == "rl":
            return math.exp(2.0 * (self.a / self.b - 1.0))
        return max(0.0, self.a / (2.0 * self.b)) ** 2

    @property
    def recommended_n(self) -> float:
        """The n of best-of-n whose bound is the peak."""
        return math.inf if math.isinf(self.peak) else kl.effective_n(self.peak)


def over_optimisation(
    nats: Sequence[float], gains: Sequence[float], form: Form = "best_of_n"
) -> OverOptimisation:
    """Fits a curve of true rewards by least squares.

    Args:
        nats: KL of each point, at least two different ones above 0.
        gains: the true reward there, less that of the base.

    Raises:
        ValueError: the points do not tell the two coefficients.
    """
    kls, y = np.asarray(nats, np.float64), np.asarray(gains, np.float64)
    if kls.shape != y.shape:
        raise ValueError(f"nats and gains must be of one length, got {kls.shape} and {y.shape}")
    kls, y = kls[kls > 0], y[kls > 0]
    if len(np.unique(kls)) < 2:
        raise ValueError("a fit needs two different KL above 0")
    d = np.sqrt(kls)
    columns = np.stack([d, -d * (d if form == "best_of_n" else np.log(d))], 1)
    (a, b), *_ = np.linalg.lstsq(columns, y, rcond=None)
    return OverOptimisation(form=form, a=float(a), b=float(b))
