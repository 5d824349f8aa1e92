"""Over-optimisation: the scoring reward rises while the held-out reward falls."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np

from cdserve import kl
from cdserve.evaluation.curves import best_of_n_mean
from cdserve.evaluation.records import Record
from cdserve.evaluation.statistics import LEVEL, Interval, difference
from cdserve.evaluation.summary import means_by_prompt

_LEAST_POINTS = 3
_MOST_CURVE_POINTS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A policy with a higher scoring reward and a lower held-out reward than another policy.

    Attributes:
        policy: the over-optimised policy.
        against: the base, or a policy of the same sweep with a lower KL.
        reward, gold: mean differences over prompts; neither interval contains 0.
        level: confidence level of the intervals.
    """

    policy: str
    against: str
    reward: Interval
    gold: Interval
    level: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Fit of the held-out reward's gain in a best-of-n sweep: d (a − b d), d = √(KL bound).

    Source: arXiv 2210.10760.

    Attributes:
        a, b: coefficients, in units of the held-out reward per √nat and per nat.
        peak: KL bound in nats at which the fitted gain is highest; None if it only rises.
        recommended_n: the n whose KL bound is the peak; None if the gain only rises.
        measured: largest KL bound of the sweep; a peak beyond it is extrapolated.
    """

    a: float
    b: float
    peak: float | None
    recommended_n: float | None
    measured: float


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Best-of-n in theory: KL bound in nats, win-rate, and mean reward or None if not estimated."""

    n: int
    kl: float
    win_rate: float
    reward: float | None


def against_base(policy: str, records: Sequence[Record], base: Sequence[Record]) -> Alarm | None:
    """The alarm of a policy against the base, if any. Both need held-out rewards."""
    return _compare(policy, records, "base", base, LEVEL)


def along(points: Sequence[tuple[str, float, Sequence[Record]]]) -> list[Alarm]:
    """The alarms of a sweep: per point, the one with the largest fall of the held-out reward.

    Each point is compared with all points of lower KL, each pair at the level 1 − 0.05 / pairs
    (Bonferroni).

    Args:
        points: name, KL in nats, and answers of each point.
    """
    ordered = sorted(points, key=lambda point: point[1])
    pairs = list(combinations(ordered, 2))
    alarms: dict[str, Alarm] = {}
    for (lower, _, before), (higher, _, after) in pairs:
        level = 1.0 - (1.0 - LEVEL) / len(pairs)
        alarm = _compare(higher, after, lower, before, level)
        if alarm and (higher not in alarms or alarm.gold.mean < alarms[higher].gold.mean):
            alarms[higher] = alarm
    return list(alarms.values())


def fit(points: Sequence[tuple[float, float]]) -> Fit | None:
    """The least-squares fit of a best-of-n sweep; None with fewer than three KL bounds above 0.

    Args:
        points: KL bound in nats, and gain of the held-out reward over the base.
    """
    above = [point for point in points if point[0] > 0]
    if len({bound for bound, _ in above}) < _LEAST_POINTS:
        return None
    bounds, gains = np.array(above).T
    d = np.sqrt(bounds)
    a, b = map(float, np.linalg.lstsq(np.stack([d, -d * d], 1), gains, rcond=None)[0])
    peak = _peak(a, b)
    recommended_n = math.inf if peak is None else kl.effective_n(peak)
    return Fit(
        a=a,
        b=b,
        peak=peak,
        recommended_n=recommended_n if math.isfinite(recommended_n) else None,
        measured=float(bounds.max()),
    )


def _peak(a: float, b: float) -> float | None:
    """The KL d² at which d (a − b d) is highest; None if it only rises."""
    if b <= 0:
        return None if a > 0 or b < 0 else 0.0
    return max(0.0, a / (2.0 * b)) ** 2


def best_of_n_curve(most: int, pools: Mapping[int, Sequence[float]]) -> list[CurvePoint]:
    """Best-of-n in theory for n from 1 to ``most``.

    Args:
        pools: scoring rewards of i.i.d. draws of the base, by prompt. The size of the smallest pool
            is the largest n with a reward.
    """
    pool_size = min(map(len, pools.values()), default=0)
    return [
        CurvePoint(
            n=n,
            kl=kl.best_of_n_bound(n),
            win_rate=kl.win_rate_bound(n),
            reward=_mean_reward(n, pools) if n <= pool_size else None,
        )
        for n in _counts(most, pool_size)
    ]


def _mean_reward(n: int, pools: Mapping[int, Sequence[float]]) -> float:
    return fmean(best_of_n_mean(pool, pool, n) for pool in pools.values())


def _counts(most: int, pool_size: int) -> list[int]:
    """The values of n: spread evenly in log n, with the pool size."""
    steps = _MOST_CURVE_POINTS - 1
    spread = {round(most ** (i / steps)) for i in range(steps + 1)}
    return sorted(spread | ({pool_size} if 1 <= pool_size <= most else set()))


def _compare(
    policy: str, records: Sequence[Record], against: str, others: Sequence[Record], level: float
) -> Alarm | None:
    reward, gold = (
        difference(
            means_by_prompt(records, gold=gold), means_by_prompt(others, gold=gold), level=level
        )
        for gold in (False, True)
    )
    if not (reward.positive and gold.negative):
        return None
    return Alarm(policy=policy, against=against, reward=reward, gold=gold, level=level)
