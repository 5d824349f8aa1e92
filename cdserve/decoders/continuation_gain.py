"""Gain that the decisions still to come add to the value of an unfinished prefix."""

import math
from collections.abc import Sequence
from functools import cache
from statistics import fmean

import numpy as np

from cdserve.decoders.candidate import Outlook

_LIMIT, _STEPS = 12.0, 4801  # the trapezoidal rule then has an error near 1e-15


@cache
def expected_maximum(count: int) -> float:
    """Expected maximum c_K of ``count`` standard normal numbers, ∫ x K φ(x) Φ(x)^(K-1) dx."""
    if count == 1:
        return 0.0
    x = np.linspace(-_LIMIT, _LIMIT, _STEPS)
    below = np.array([0.5 * math.erfc(-each / math.sqrt(2.0)) for each in x])
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return float(np.trapezoid(x * count * density * below ** (count - 1), x))


def continuation_gain(outlook: Outlook, m: int, counts: Sequence[int]) -> float:
    """Expected gain of B later decisions among K candidates, in units of the score, at least 0.

    For one decision, it is the gain of the best of K held-out responses. B decisions that explain
    equal parts of a normal change are worth √B times as much as one: as the best of n, where n has
    the expected maximum c_n = c_K √B. Beyond the measured n the gain does not rise.

    Args:
        outlook: the gains, and B = tokens to come / ``m``, at least 1.
        m: block length in tokens.
        counts: K of each later decision, the last repeated.
    """
    decisions = max(1.0, outlook.tokens / m)
    later = [counts[min(i, len(counts) - 1)] for i in range(math.ceil(decisions))]
    maximum = fmean(map(expected_maximum, later)) * math.sqrt(decisions)
    measured = [expected_maximum(2**i) for i in range(len(outlook.gains))]
    if not maximum or not measured:
        return 0.0  # without a choice, even if the values are too low
    return max(0.0, float(np.interp(maximum, measured, outlook.gains)))
