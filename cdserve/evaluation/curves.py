"""Best-of-n for every n, estimated from one pool of scored draws."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def best_of_n_mean(scores: ArrayLike, values: ArrayLike, n: int) -> float:
    """Unbiased estimate of the mean value of best-of-n's choice, from N ≥ n i.i.d. draws.

    It is the mean over all subsets of n draws: Σ_i value_i C(i, n−1) / C(N, n), with i from 0 in
    ascending order of score. Draws with equal scores share the mean of their values.

    Args:
        scores: float [N], the quantity that the choice maximises.
        values: float [N], the quantity to average: another reward, a length, the scores themselves.
        n: from 1 to N.

    Raises:
        ValueError: the lengths differ, a number is not finite, or ``n`` is out of range.
    """
    r, g = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    if r.ndim != 1 or r.shape != g.shape:
        raise ValueError(f"scores and values must have the same shape, got {r.shape} and {g.shape}")
    if not 1 <= n <= len(r):
        raise ValueError(f"n must be from 1 to the pool's {len(r)}, got {n}")
    if not (np.isfinite(r).all() and np.isfinite(g).all()):
        raise ValueError("scores and values must be finite")
    _, level, size = np.unique(r, return_inverse=True, return_counts=True)
    level_mean = np.bincount(level, weights=g) / size
    return float(_top_weights(len(r), n) @ level_mean[np.sort(level)])


def _top_weights(total: int, n: int) -> NDArray[np.float64]:
    """P(the i-th smallest of ``total`` is the largest of n drawn without replacement), i from 0."""
    log_factorial = np.array([math.lgamma(i + 1) for i in range(total + 1)])
    i = np.arange(n - 1, total)
    log_p = log_factorial[i] - log_factorial[n - 1] - log_factorial[i - n + 1]
    log_p -= log_factorial[total] - log_factorial[n] - log_factorial[total - n]
    weights = np.zeros(total)
    weights[n - 1 :] = np.exp(log_p)
    total_weight: np.float64 = weights.sum()
    return weights / total_weight
