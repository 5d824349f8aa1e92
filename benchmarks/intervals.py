"""Means with 95 % intervals."""

import math
import statistics
from collections.abc import Sequence


def mean_ci(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval."""
    return statistics.fmean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))
