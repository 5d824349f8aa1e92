"""Rewards by the model's own confidence, from statistics that the engine computes of each token."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np

from cdserve.scoring.programmatic import SyncReward
from cdserve.scoring.reward import Floats, Response


def _lowest_tenth(groups: Floats) -> float:
    count = max(1, len(groups) // 10)
    return float(np.partition(groups, count - 1)[:count].mean())


AGGREGATES: Mapping[str, Callable[[Floats], float]] = {
    "mean": lambda groups: float(groups.mean()),
    "min": lambda groups: float(groups.min()),
    "tail": lambda groups: float(groups[-1]),
    "bottom_10": _lowest_tenth,
}
"""Functions of the mean confidences of all windows of a response, in order (arXiv 2508.15260)."""


class Confidence(SyncReward):
    """Confidence of the response, or of a prefix: its tokens' confidences, aggregated.

    The mean of all tokens, or an aggregate of the means of all windows of consecutive tokens. A
    response shorter than a window is one window; one without tokens has the confidence 0.

    Args:
        statistic: confidence of a token, as ``worker.token_stats`` names it.
        window: tokens per window; None for the whole response.
        aggregate: a key of ``AGGREGATES``.
    """

    kind: ClassVar[str] = "confidence"
    prefixes = True
    per_token = True

    def __init__(self, statistic: str, window: int | None, aggregate: str) -> None:
        self._statistic = statistic
        self._window = window
        self._aggregate = AGGREGATES[aggregate]
        self.token_stats = frozenset([statistic])

    def __call__(self, response: Response) -> float:
        sums = response.token_sums[self._statistic]
        tokens = len(sums) - 1
        if tokens == 0:
            return 0.0
        width = min(tokens, self._window or tokens)
        return self._aggregate((sums[width:] - sums[:-width]) / width)
