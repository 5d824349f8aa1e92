"""Figures of a policy, from the records of its answers and of the base's answers."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from cdserve import kl
from cdserve.evaluation.positions import Bucket, kl_by_position, reported_kl, steering_kl
from cdserve.evaluation.records import Record
from cdserve.evaluation.statistics import (
    Interval,
    correlation,
    difference,
    distinct,
    mean_interval,
    percentile,
    wilson,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A reward, compared with the base's answers to the same prompts.

    Attributes:
        mean: mean reward over prompts.
        gain: mean difference from the base's reward, paired by prompt.
        win_rate: share of pairs of answers in which the policy's reward is higher; a tie counts as
            half.
        ties: share of pairs with equal rewards.
    """

    mean: Interval
    gain: Interval
    win_rate: Interval
    ties: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """KL divergence of a response from the base, in nats, as reported by the server.

    Attributes:
        bound, estimate: means over prompts.
        estimators: number of answers by estimator.
        flag: flag of the mean bound.
        by_position: KL by token position; None without traces.
        even: whether part of the KL is known per response only, and is spread evenly over tokens.
    """

    bound: Interval
    estimate: Interval
    estimators: Mapping[str, int]
    flag: kl.Flag
    by_position: Sequence[Bucket] | None
    even: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Client-side latency in seconds, and rates, at the run's concurrency.

    Attributes:
        first_p50, first_p99: time to the first block of text; None if no answer has text.
        inter_p50, inter_p99: time between blocks; None if every answer is one block.
        answer_p50, answer_p99: time to the end of an answer.
        tokens_per_second: tokens of all answers divided by the sum of their seconds.
        throughput: tokens of all answers divided by the seconds with any answer in progress.
    """

    first_p50: float | None
    first_p99: float | None
    inter_p50: float | None
    inter_p99: float | None
    answer_p50: float
    answer_p99: float
    tokens_per_second: float
    throughput: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All figures of a policy.

    Attributes:
        answers: number of answers.
        prompts: number of prompts; intervals are over prompts.
        reward: the scoring reward.
        gold: the held-out reward; None without one.
        kl: None if the server reports no KL.
        tokens: mean length of an answer.
        cut: share of answers that ``max_tokens`` cut.
        distinct: distinct-1, -2 and -3.
        reward_length, gold_length: correlation of the rewards with the length, over answers.
        tie_rate: share of decisions between several candidates whose two best scores are equal.
        ended_candidates, ended_selected: shares of candidates, and of selected candidates, that had
            ended, in decisions between ended and unfinished ones; None without such decisions.
        candidate_tokens: tokens drawn per token returned; None if the server does not report them.
        draws: mean number of responses begun per answer; None unless every report has it.
        saved_tokens: mean estimate of the tokens per answer that were not drawn; None likewise.
    """

    answers: int
    prompts: int
    reward: Gain
    gold: Gain | None
    kl: Divergence | None
    tokens: Interval
    cut: float
    distinct: Sequence[float | None]
    reward_length: float | None
    gold_length: float | None
    tie_rate: float | None
    ended_candidates: float | None
    ended_selected: float | None
    candidate_tokens: float | None
    draws: float | None
    saved_tokens: float | None
    latency: Latency


def summarise(records: Sequence[Record], base: Sequence[Record], *, plain: bool) -> Figures:
    """The figures of a policy.

    Args:
        records: the policy's answers, at least one.
        base: the base's answers to the same prompts.
        plain: whether the policy is plain decoding, which has no report.
    """
    lengths = [record.tokens for record in records]
    golds = gold_of(records)
    ended_candidates, ended_selected = _ended(records)
    return Figures(
        answers=len(records),
        prompts=len({record.prompt for record in records}),
        reward=_gain(records, base, lambda record: record.reward),
        gold=None if golds is None else _gain(records, base, _gold),
        kl=_plain_kl(records) if plain else _kl(records),
        tokens=mean_interval(_by_prompt(records, lambda record: record.tokens)),
        cut=fmean(record.finish_reason == "length" for record in records),
        distinct=[distinct([record.text for record in records], n) for n in (1, 2, 3)],
        reward_length=correlation([record.reward for record in records], lengths),
        gold_length=None if golds is None else correlation(golds, lengths),
        tie_rate=None if plain else _tie_rate(records),
        ended_candidates=ended_candidates,
        ended_selected=ended_selected,
        candidate_tokens=1.0 if plain else _candidate_tokens(records),
        draws=_mean_of_reports(records, lambda report: report["draws"]["made"]),
        saved_tokens=_mean_of_reports(records, lambda report: report["saved_tokens"]),
        latency=_latency(records),
    )


def means_by_prompt(records: Sequence[Record], *, gold: bool) -> list[float]:
    """The mean reward of each prompt's answers, ordered by prompt."""
    return _by_prompt(records, _gold if gold else lambda record: record.reward)


def gold_of(records: Iterable[Record]) -> list[float] | None:
    """The held-out rewards; None without a held-out reward."""
    golds = [record.gold for record in records]
    return None if None in golds else [gold for gold in golds if gold is not None]


def _gain(
    records: Sequence[Record], base: Sequence[Record], value: Callable[[Record], float]
) -> Gain:
    """Compares every answer with every base answer to the same prompt; each prompt counts once."""
    others = _grouped(base, value)
    wins: list[float] = []
    ties: list[float] = []
    for prompt, values in _grouped(records, value).items():
        pairs = [(a, b) for a in values for b in others[prompt]]
        ties.append(fmean(a == b for a, b in pairs))
        wins.append(fmean((a > b) + (a == b) / 2 for a, b in pairs))
    means = _by_prompt(records, value)
    return Gain(
        mean=mean_interval(means),
        gain=difference(means, _by_prompt(base, value)),
        win_rate=wilson(sum(wins), len(wins)),
        ties=fmean(ties),
    )


def _gold(record: Record) -> float:
    assert record.gold is not None
    return record.gold


def _grouped(records: Sequence[Record], value: Callable[[Record], float]) -> dict[int, list[float]]:
    groups: defaultdict[int, list[float]] = defaultdict(list)
    for record in sorted(records, key=lambda record: (record.prompt, record.draw)):
        groups[record.prompt].append(value(record))
    return groups


def _by_prompt(records: Sequence[Record], value: Callable[[Record], float]) -> list[float]:
    return [fmean(values) for values in _grouped(records, value).values()]


def _plain_kl(records: Sequence[Record]) -> Divergence:
    zero = mean_interval([0.0] * len({record.prompt for record in records}))
    return Divergence(
        bound=zero, estimate=zero, estimators={}, flag="ok", by_position=None, even=False
    )


def _kl(records: Sequence[Record]) -> Divergence | None:
    if any(record.report is None for record in records):
        return None
    bound = mean_interval(_by_prompt(records, lambda record: reported_kl(record)["bound"]))
    estimators: defaultdict[str, int] = defaultdict(int)
    for record in records:
        estimators[reported_kl(record)["estimator"]] += 1
    traced = all(record.steps is not None for record in records)
    return Divergence(
        bound=bound,
        estimate=mean_interval(_by_prompt(records, lambda record: reported_kl(record)["estimate"])),
        estimators=dict(estimators),
        flag=kl.flag(bound.mean),
        by_position=kl_by_position(records) if traced else None,
        even=traced and any(steering_kl(record) != (0.0, 0.0) for record in records),
    )


def _tie_rate(records: Sequence[Record]) -> float | None:
    reports = [record.report for record in records if record.report is not None]
    several = [report for report in reports if report["candidates"] > report["decisions"]]
    if not several:
        return None
    ties: int = sum(report["ties"] for report in several)
    decisions: int = sum(report["decisions"] for report in several)
    return ties / decisions


def _ended(records: Sequence[Record]) -> tuple[float | None, float | None]:
    """Shares of ended ones among the candidates and among the selected, where both kinds met."""
    ends = [(record.report or {}).get("ends") for record in records]
    counts = [each for each in ends if each is not None]
    decisions: int = sum(each["decisions"] for each in counts)
    if not decisions:
        return None, None
    candidates: int = sum(each["candidates"] for each in counts)
    ended: int = sum(each["ended"] for each in counts)
    selected: int = sum(each["selected"] for each in counts)
    return ended / candidates, selected / decisions


def _candidate_tokens(records: Sequence[Record]) -> float | None:
    reports = [record.report for record in records if record.report is not None]
    returned = sum(record.tokens for record in records)
    if len(reports) < len(records) or not returned:
        return None
    drawn: int = sum(report["candidate_tokens"] for report in reports)
    return drawn / returned


def _mean_of_reports(
    records: Sequence[Record], value: Callable[[Mapping[str, Any]], float]
) -> float | None:
    """Mean of a field of the reports with ``draws``; None unless all have it."""
    reports = [record.report or {} for record in records]
    return fmean(map(value, reports)) if all("draws" in each for each in reports) else None


def _latency(records: Sequence[Record]) -> Latency:
    first = [record.blocks[0] for record in records if record.blocks]
    between = [b - a for record in records for a, b in pairwise(record.blocks)]
    tokens = sum(record.tokens for record in records)
    seconds = [record.seconds for record in records]
    return Latency(
        first_p50=percentile(first, 50) if first else None,
        first_p99=percentile(first, 99) if first else None,
        inter_p50=percentile(between, 50) if between else None,
        inter_p99=percentile(between, 99) if between else None,
        answer_p50=percentile(seconds, 50),
        answer_p99=percentile(seconds, 99),
        tokens_per_second=tokens / sum(seconds),
        throughput=tokens / _busy(records),
    )


def _busy(records: Sequence[Record]) -> float:
    """Seconds with at least one answer in progress."""
    total, end = 0.0, 0.0
    for record in sorted(records, key=lambda record: record.began):
        until = record.began + record.seconds
        total += max(0.0, until - max(end, record.began))
        end = max(end, until)
    return total
