"""KL by token position, out of the traces of answers."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from statistics import fmean
from typing import Any

from cdserve.evaluation.records import Record

_FIRST_BUCKET = 16
"""Tokens of the first bucket of positions; each later one ends at twice as many."""
_ROUNDING = 1e-9
"""Nats that a sum may be off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """KL of the tokens of some positions, in nats a token.

    Attributes:
        low, high: positions from ``low`` to before ``high``, from 0.
        tokens: of all answers there.
        bound, estimate: means over them.
    """

    low: int
    high: int
    tokens: int
    bound: float
    estimate: float


def kl_by_position(records: Iterable[Record]) -> list[Bucket]:
    """KL by token, each decision's spread evenly over the tokens it took.

    What is reported of a whole response beside its decisions, the KL of steering, is spread evenly
    over all of its tokens.
    """
    sums: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for record in records:
        for position, nats in enumerate(_per_token(record)):
            sums[_bucket(position)].append(nats)
    return [
        Bucket(
            low=_FIRST_BUCKET << (i - 1) if i else 0,
            high=_FIRST_BUCKET << i,
            tokens=len(found),
            bound=fmean(bound for bound, _ in found),
            estimate=fmean(estimate for _, estimate in found),
        )
        for i, found in sorted(sums.items())
    ]


def steering(record: Record) -> tuple[float, float]:
    """What the report has of KL beside that of its decisions."""
    found, steps = reported(record), record.steps or ()
    bound = found["bound"] - math.fsum(step[1] for step in steps)
    estimate = found["estimate"] - math.fsum(step[2] for step in steps)
    return bound if bound > _ROUNDING else 0.0, estimate if estimate > _ROUNDING else 0.0


def reported(record: Record) -> Mapping[str, Any]:
    """The KL that the server reports of an answer that has a report."""
    assert record.report is not None
    found: Mapping[str, Any] = record.report["kl"]
    return found


def _bucket(position: int) -> int:
    return (position // _FIRST_BUCKET).bit_length()


def _per_token(record: Record) -> Iterator[tuple[float, float]]:
    steps = record.steps or ()
    tokens = sum(step[0] for step in steps)
    for_all = [nats / tokens for nats in steering(record)] if tokens else [0.0, 0.0]
    for taken, bound, estimate in steps:
        yield from repeat((bound / taken + for_all[0], estimate / taken + for_all[1]), int(taken))
