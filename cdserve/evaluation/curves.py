"""Curves of best-of-n from one pool of scored draws."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
