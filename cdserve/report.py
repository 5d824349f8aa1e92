"""The report: what an answer says of its making."""

from collections import Counter
from collections.abc import Sequence
from typing import NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from cdserve import kl
from cdserve.decoders.candidate import Decision

_documented = with_config(ConfigDict(use_attribute_docstrings=True, extra="forbid"))


@_documented
class Spread(TypedDict):
    """Of the scores of all candidates of all decisions."""

    mean: float
    """Their mean."""
    max: float
    """The highest."""
    min: float
    """The lowest."""


@_documented
class Limited(TypedDict):
    """What a budget left undone."""

    decisions: int
    """Decisions with fewer candidates than asked for."""
    tokens: int
    """Tokens that were left to the base model."""


@_documented
class KL(TypedDict):
    """How far the answer's law is from the base model's, in nats (docs/methods.md)."""

    bound: float
    """It is no further."""
    estimate: float
    """An estimate from this one answer."""
    estimator: str
    """How it was estimated."""
    flag: kl.Flag
    """`inspect` from a bound of 8 nats, `high` from 15, else `ok`."""
    budget: NotRequired[float]
    """With a KL budget: what the bound never passes."""
    limited: NotRequired[Limited]
    """With a KL budget: what was left undone because of it."""


@_documented
class Deadline(TypedDict):
    """Of an answer whose request had one."""

    ms: int
    """What was asked for."""
    passed: bool
    """Whether it ended the response."""


@_documented
class TracedCandidate(TypedDict):
    """One candidate of a decision."""

    text: str
    """Its own, without the prefix."""
    tokens: int
    """Its length."""
    finish_reason: str | None
    """How the response ended with it: vLLM's, or `deadline`; null for a block that goes on."""
    logprob: float | None
    """log p in nats, where `estimator` could know it."""
    score: float
    """The weighted sum of its rewards; of a block, of the whole prefix with it."""
    rewards: dict[str, float]
    """Each reward in its own units."""
    chosen: bool
    """Whether it was taken."""


@_documented
class DecisionKL(TypedDict):
    """Of one decision, in nats; steering is in the response's KL alone."""

    bound: float
    """As of the response."""
    estimate: float
    """As of the response."""


@_documented
class TracedDecision(TypedDict):
    """One decision. The last lists those candidates too that were drawn after the response ended,
    beside it.
    """

    kl: DecisionKL
    """What it adds to that of the response."""
    candidates: list[TracedCandidate]
    """In the order in which they were drawn."""
    choice: NotRequired[int]
    """Only in a stream's `alignment_decisions`: the index of the choice that it is of."""


@_documented
class Report(TypedDict):
    """What an answer says of its making. Where an answer has several choices, counts are sums and
    scores are means over them, and KL is that of the farthest.
    """

    method: str
    """The policy's."""
    score: float
    """Of the returned text: the weighted sum of its rewards."""
    rewards: dict[str, float]
    """Of the returned text: each reward in its own units."""
    scores: Spread
    """Those of all candidates of all decisions."""
    decisions: int
    """1 where whole responses are drawn, else the number of blocks of the response."""
    candidates: int
    """Drawn in all, with those that were given up."""
    candidate_tokens: int
    """Their tokens, without the one that a candidate decodes beyond its block for its value."""
    ties: int
    """Decisions whose two best scores (with `worst_case`: worst-case sums) were equal."""
    kl: KL
    """How far from the base model."""
    deadline: NotRequired[Deadline]
    """Only with a `deadline_ms`."""
    accepted: NotRequired[bool]
    """`rejection` and `cards` only: whether the response, or each of its blocks, was accepted;
    false if one is the best of `max_draws`."""
    failed: NotRequired[dict[str, int]]
    """Only where rewards failed that a decision may do without (`on_failure`): decisions by reward.
    Such a reward is missing from `rewards` where it failed last."""
    trace: NotRequired[list[TracedDecision]]
    """Only with `report: "trace"`: every decision, in order."""
    choices: NotRequired[list["Report"]]
    """Only with several choices: each choice's own report."""


def report(
    method: str,
    decisions: Sequence[Decision],
    trace: bool,
    budget: float | None = None,
    deadline: int | None = None,
) -> Report:
    """One response's report, as the wire has it.

    Args:
        decisions: all of the response's decisions, in order; at least one.
        trace: whether to list every decision's candidates.
        budget: that of the KL bound, in nats.
        deadline: in milliseconds.
    """
    last = decisions[-1].score
    totals = [score.total for decision in decisions for score in decision.scores]
    made: Report = {
        "method": method,
        "score": last.total,
        "rewards": dict(last.rewards),
        "scores": {"mean": sum(totals) / len(totals), "max": max(totals), "min": min(totals)},
        "decisions": len(decisions),
        "candidates": len(totals),
        "candidate_tokens": sum(len(c.token_ids) for d in decisions for c in d.candidates),
        "ties": sum(decision.tie for decision in decisions),
        "kl": _kl(decisions),
    }
    if budget is not None:
        made["kl"]["budget"] = budget
        made["kl"]["limited"] = _limited(decisions)
    if deadline is not None:
        passed = decisions[-1].candidate.finish_reason == "deadline"
        made["deadline"] = {"ms": deadline, "passed": passed}
    if decisions[-1].accepted is not None:
        made["accepted"] = all(decision.accepted for decision in decisions)
    failed = Counter(name for decision in decisions for name in decision.score.failed)
    if failed:
        made["failed"] = dict(failed)
    if trace:
        made["trace"] = [traced(decision) for decision in decisions]
    return made


def merged(reports: Sequence[Report]) -> Report:
    """The report of an answer with several choices: counts are summed, scores averaged, KL is
    that of the farthest choice, ``accepted`` is whether all were; ``choices`` holds each choice's
    own report."""
    if len(reports) == 1:
        return reports[0]
    names = dict.fromkeys(name for made in reports for name in made["rewards"])
    failed = sum((Counter(made.get("failed", {})) for made in reports), Counter[str]())
    whole: Report = {
        "method": reports[0]["method"],
        "score": _mean([made["score"] for made in reports]),
        "rewards": {
            name: _mean([made["rewards"][name] for made in reports if name in made["rewards"]])
            for name in names
        },
        "scores": {
            "mean": _mean([made["scores"]["mean"] for made in reports]),
            "max": max(made["scores"]["max"] for made in reports),
            "min": min(made["scores"]["min"] for made in reports),
        },
        "decisions": sum(made["decisions"] for made in reports),
        "candidates": sum(made["candidates"] for made in reports),
        "candidate_tokens": sum(made["candidate_tokens"] for made in reports),
        "ties": sum(made["ties"] for made in reports),
        "kl": max((made["kl"] for made in reports), key=lambda found: found["bound"]),
    }
    if failed:
        whole["failed"] = dict(failed)
    if "deadline" in reports[0]:
        whole["deadline"] = _latest(reports)
    if "accepted" in reports[0]:
        whole["accepted"] = all(made["accepted"] for made in reports)
    whole["choices"] = list(reports)
    return whole


def _latest(reports: Sequence[Report]) -> Deadline:
    """The deadline of one that it ended, if it ended any."""
    return max((made["deadline"] for made in reports), key=lambda found: found["passed"])


def _kl(decisions: Sequence[Decision]) -> KL:
    """KL of the selections, and of the steering of the tokens taken, which is known exactly."""
    steering = sum(decision.candidate.kl or 0.0 for decision in decisions)
    bound = sum(decision.kl_bound for decision in decisions) + steering
    estimator = decisions[-1].kl_estimator
    if estimator != "exact_path" and decisions[-1].candidate.kl is not None:
        estimator = f"{estimator}+exact_path"
    return {
        "bound": bound,
        "estimate": sum(decision.kl_estimate for decision in decisions) + steering,
        "estimator": estimator,
        "flag": kl.flag(bound),
    }


def _limited(decisions: Sequence[Decision]) -> Limited:
    """What a budget left undone: decisions with fewer candidates, tokens that were not steered."""
    return {
        "decisions": sum(decision.limited for decision in decisions),
        "tokens": sum(decision.candidate.unsteered for decision in decisions),
    }


def traced(decision: Decision) -> TracedDecision:
    """A decision with its candidates, as the wire has it."""
    return {
        "kl": {"bound": decision.kl_bound, "estimate": decision.kl_estimate},
        "candidates": [
            {
                "text": candidate.text,
                "tokens": len(candidate.token_ids),
                "finish_reason": candidate.finish_reason,
                "logprob": candidate.cumulative_logprob,
                "score": score.total,
                "rewards": dict(score.rewards),
                "chosen": i == decision.chosen,
            }
            for i, (candidate, score) in enumerate(
                zip(decision.candidates, decision.scores, strict=True)
            )
        ],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
