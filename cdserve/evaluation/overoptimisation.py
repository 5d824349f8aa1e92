"""Where the scoring reward rises and the held-out one falls, and where best-of-n should stop."""

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
    """A policy with a higher scoring reward than another, and a lower held-out one.

    Attributes:
        policy, against: the two; ``against`` is the base or the same sweep's, of lower KL.
        reward, gold: mean differences, prompt by prompt, neither of whose intervals holds 0.
        level: of the intervals.
    """

    policy: str
    against: str
    reward: Interval
    gold: Interval
    level: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The held-out reward's gain over a best-of-n sweep, d (a − b d) with d = √KL bound.

    Attributes:
        a, b: in units of the held-out reward a √nat, and a nat.
        peak: the KL bound in nats from which on the reward falls; None where it never does.
        recommended_n: the n with this bound; None where the reward never falls.
        measured: the largest KL bound of the sweep; a peak beyond it is extrapolated.
    """

    a: float
    b: float
    peak: float | None
    recommended_n: float | None
    measured: float


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Best-of-n as theory has it: its KL bound in nats, its win-rate, its reward if it is known."""

    n: int
    kl: float
    win_rate: float
    reward: float | None


def against_base(policy: str, records: Sequence[Record], base: Sequence[Record]) -> Alarm | None:
    """The alarm of a policy against the base, if there is one. Both have held-out rewards."""
    return _compared(policy, records, "base", base, LEVEL)


def along(points: Sequence[tuple[str, float, Sequence[Record]]]) -> list[Alarm]:
    """The alarms of a sweep: of each point against that of lower KL where gold falls the most.

    All pairs are compared, so each at the level 1 − 0.05 / pairs (Bonferroni).

    Args:
        points: name, KL in nats, and answers of each.
    """
    ordered = sorted(points, key=lambda point: point[1])
    pairs = list(combinations(ordered, 2))
    found: dict[str, Alarm] = {}
    for (lower, _, before), (higher, _, after) in pairs:
        level = 1.0 - (1.0 - LEVEL) / len(pairs)
        alarm = _compared(higher, after, lower, before, level)
        if alarm and (higher not in found or alarm.gold.mean < found[higher].gold.mean):
            found[higher] = alarm
    return list(found.values())


def fit(points: Sequence[tuple[float, float]]) -> Fit | None:
    """The fit of a best-of-n sweep; None where fewer than three points have a KL above 0.

    Args:
        points: KL bound in nats and gain of the held-out reward over the base, of each.
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
    """The d² with the largest d (a − b d); None where it only rises."""
    if b <= 0:
        return None if a > 0 or b < 0 else 0.0
    return max(0.0, a / (2.0 * b)) ** 2


def best_of_n_curve(most: int, pools: Mapping[int, Sequence[float]]) -> list[CurvePoint]:
    """Best-of-n by theory for n from 1 to ``most``.

    Args:
        pools: by prompt, scoring rewards of i.i.d. draws of the base. The reward is known up to the
            size of the smallest.
    """
    known = min(map(len, pools.values()), default=0)
    return [
        CurvePoint(
            n,
            kl.best_of_n_bound(n),
            kl.win_rate_bound(n),
            fmean(best_of_n_mean(pool, pool, n) for pool in pools.values()) if n <= known else None,
        )
        for n in _counts(most, known)
    ]


def _counts(most: int, known: int) -> list[int]:
    steps = _MOST_CURVE_POINTS - 1
    spread = {round(most ** (i / steps)) for i in range(steps + 1)}
    return sorted(spread | ({known} if 1 <= known <= most else set()))


def _compared(
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
