"""Race: gives up candidates that are unlikely to end as the best."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cdserve.decoders.candidate import Prefix
from cdserve.decoders.selection import OrderDependentRule

Floats = NDArray[np.float64]

_REACH, _STEPS = 8.0, 801
"""Half the width of the tables, in standard deviations, and their size."""
_NORMAL = np.linspace(-_REACH, _REACH, _STEPS)
_LOG_BELOW = np.log([0.5 * math.erfc(-x / math.sqrt(2.0)) for x in _NORMAL])
"""log Φ of the numbers of ``_NORMAL``."""


class Race(OrderDependentRule):
    """Keeps the candidates that may still end as the best, or only a favourite that is nearly sure.

    The final score of a candidate is taken as normal around its present score. A candidate whose
    probability of the highest final score is below δ is given up. If one candidate's probability
    exceeds 1 - δ, all others are given up. Each kept candidate has one continuation, so the
    response is one of the i.i.d. responses started: best-of-n's bound holds for their number, and
    later rounds add nothing to it.

    Args:
        delta: δ, from 0 to 1.
        deviation: maps the length of an unfinished candidate, in tokens, to the standard deviation
            of its final score.
    """

    def __init__(self, delta: float, deviation: Callable[[int], float]) -> None:
        self._delta = delta
        self._deviation = deviation

    def keep(self, scores: Sequence[float], prefixes: Sequence[Prefix]) -> Sequence[int]:
        """Indices of the candidates kept, by their scores."""
        ended = [prefix[-1].finish_reason is not None for prefix in prefixes]
        # All unfinished candidates have the same length.
        unfinished = (prefix for prefix, end in zip(prefixes, ended, strict=True) if not end)
        tokens = sum(len(block.token_ids) for block in next(unfinished, ()))
        deviation = self._deviation(tokens) if tokens else 0.0
        chances = win_chances(scores, ended, deviation)
        favourite = max(range(len(chances)), key=chances.__getitem__)
        if chances[favourite] > 1.0 - self._delta:
            return [favourite]
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        return [i for i in order if chances[i] >= self._delta or i == favourite]


def win_chances(scores: Sequence[float], ended: Sequence[bool], deviation: float) -> list[float]:
    """Probability that each candidate has the highest final score.

    The final scores of unfinished candidates are independent and normal around the present scores:
    ∫ φ(x - z_i) Π_j Φ(x - z_j) dx, with j over the other unfinished candidates, x above the highest
    final score so far, and z the score in standard deviations.

    Args:
        scores: present scores.
        ended: whether the present score is final; of equal final scores the first wins.
        deviation: standard deviation of the final score of an unfinished candidate.
    """
    top = max(scores)
    if all(ended) or deviation == 0.0:
        return [float(i == scores.index(top)) for i in range(len(scores))]
    z, final = (np.array(scores) - top) / deviation, np.array(ended)
    x = _NORMAL[:, None]
    log_below = _log_below(x - z[~final])
    density = np.exp(log_below.sum(1, keepdims=True) - log_below - (x - z[~final]) ** 2 / 2)
    chances = np.zeros(len(z))
    if final.any():
        best = int(np.where(final, z, -np.inf).argmax())
        chances[best] = math.exp(float(_log_below(z[best] - z[~final]).sum()))
        # The share of each step of the integral that is above the best final score.
        density *= np.clip((x - z[best]) / (x[1] - x[0]) + 0.5, 0.0, 1.0)
    chances[~final] = np.trapezoid(density, x, axis=0) / math.sqrt(2 * math.pi)
    normalised: list[float] = (chances / chances.sum()).tolist()
    return normalised


def _log_below(x: Floats) -> Floats:
    """log Φ(x), with x clamped to ±``_REACH``."""
    log_below: Floats = np.interp(x, _NORMAL, _LOG_BELOW)
    return log_below
