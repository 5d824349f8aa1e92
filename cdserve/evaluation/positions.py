"""KL by token position, from the traces of answers."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from statistics import fmean
from typing import Any

from cdserve.evaluation.records import Record

_FIRST_BUCKET = 16
"""Number of positions in the first bucket; each next bucket ends at twice the position."""
_ROUNDING = 1e-9
"""Tolerance of a difference of sums, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """KL at a range of token positions, in nats per token.

    Attributes:
        low, high: first position, from 0, and the position after the last.
        tokens: number of tokens of all answers in the range.
        bound, estimate: means over these tokens.
    """

    low: int
    high: int
    tokens: int
    bound: float
    estimate: float


def kl_by_position(records: Iterable[Record]) -> list[Bucket]:
    """KL by token position: the KL of a decision is spread evenly over its chosen tokens.

    The KL of token-level steering is reported per response, and spread evenly over its tokens.
    """
    sums: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for record in records:
        for position, nats in enumerate(_per_token(record)):
            sums[_bucket(position)].append(nats)
    return [
        Bucket(
            low=_FIRST_BUCKET << (i - 1) if i else 0,
            high=_FIRST_BUCKET << i,
            tokens=len(nats),
            bound=fmean(bound for bound, _ in nats),
            estimate=fmean(estimate for _, estimate in nats),
        )
        for i, nats in sorted(sums.items())
    ]


def steering_kl(record: Record) -> tuple[float, float]:
    """Bound and estimate of the response's KL that are not due to decisions, in nats."""
    kl, steps = reported_kl(record), record.steps or ()
    bound = kl["bound"] - math.fsum(step[1] for step in steps)
    estimate = kl["estimate"] - math.fsum(step[2] for step in steps)
    return bound if bound > _ROUNDING else 0.0, estimate if estimate > _ROUNDING else 0.0


def reported_kl(record: Record) -> Mapping[str, Any]:
    """The ``kl`` of an answer's report; the answer must have a report."""
    assert record.report is not None
    kl: Mapping[str, Any] = record.report["kl"]
    return kl


def _bucket(position: int) -> int:
    return (position // _FIRST_BUCKET).bit_length()


def _per_token(record: Record) -> Iterator[tuple[float, float]]:
    steps = record.steps or ()
    tokens = sum(step[0] for step in steps)
    steering = [nats / tokens for nats in steering_kl(record)] if tokens else [0.0, 0.0]
    for chosen, bound, estimate in steps:
        per_token = (bound / chosen + steering[0], estimate / chosen + steering[1])
        yield from repeat(per_token, int(chosen))
