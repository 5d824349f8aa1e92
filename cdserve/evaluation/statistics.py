"""Means, shares and differences with confidence intervals; percentiles, diversity, correlation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist, fmean

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean or a share with its confidence interval; the bounds are None if unknown."""

    mean: float
    low: float | None
    high: float | None

    @property
    def positive(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low is not None and self.low > 0

    @property
    def negative(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.high is not None and self.high < 0


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of independent values with Student's t interval; no bounds for a single value.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None)
    half = (
        student_t(level, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    )
    return Interval(mean, mean - half, mean + half)


def difference(values: Sequence[float], others: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of the paired differences ``values`` − ``others``."""
    return mean_interval([a - b for a, b in zip(values, others, strict=True)], level)


def wilson(successes: float, total: int, level: float = LEVEL) -> Interval:
    """A share with Wilson's score interval; count a tie as half a success.

    Raises:
        ValueError: ``total`` < 1, or ``successes`` is not from 0 to ``total``.
    """
    if not 0 <= successes <= total or total < 1:
        raise ValueError(f"successes must be from 0 to {total}, got {successes}")
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    share = successes / total
    middle = (share + z * z / (2 * total)) / (1.0 + z * z / total)
    spread = math.sqrt(share * (1.0 - share) / total + z * z / (4 * total * total))
    half = z * spread / (1.0 + z * z / total)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile, linearly interpolated between values."""
    return float(np.percentile(np.asarray(values, np.float64), percent))


def distinct(texts: Sequence[str], n: int) -> float | None:
    """distinct-n (arXiv 1510.03055): unique word n-grams of all texts, divided by all n-grams.

    Words are separated by white space and lower-cased. None if no text has n words.
    """
    grams = [
        tuple(words[i : i + n])
        for words in (text.lower().split() for text in texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else None


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's correlation; None if ``x`` or ``y`` is constant."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1.0, 1.0))


@cache
def student_t(level: float, dof: int) -> float:
    """t with P(|T| ≤ t) = ``level`` for Student's T of ``dof`` degrees of freedom.

    Raises:
        ValueError: ``dof`` < 1, or ``level`` is not between 0 and 1.
    """
    if dof < 1 or not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1 and dof at least 1, got {level}, {dof}")
    low, high = 0.0, math.pi / 2  # θ = atan(t / √dof)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, dof) < level else (low, middle)
    return math.sqrt(dof) * math.tan(low)


def _within(theta: float, dof: int) -> float:
    """P(|T| ≤ √dof tan θ) as a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    odd = dof % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for i in range(2 + odd, dof + 1, 2):
        total += term
        term *= math.cos(theta) ** 2 * (i - 1) / i
    inside = math.sin(theta) * total
    return 2.0 / math.pi * (theta + inside) if odd else inside
