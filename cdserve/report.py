"""The report: what an answer says of its making."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cdserve import kl
from cdserve.decoders.candidate import Decision


def report(
    method: str,
    decisions: Sequence[Decision],
    trace: bool,
    budget: float | None = None,
    deadline: int | None = None,
) -> dict[str, Any]:
    """One response's report, as the wire has it.

    Args:
        decisions: all of the response's decisions, in order; at least one.
        trace: whether to list every decision's candidates.
        budget: that of the KL bound, in nats.
        deadline: in milliseconds.
    """
    last = decisions[-1].score
    totals = [score.total for decision in decisions for score in decision.scores]
    kl_of = _kl(decisions)
    made: dict[str, Any] = {
        "method": method,
        "score": last.total,
        "rewards": dict(last.rewards),
        "scores": {"mean": sum(totals) / len(totals), "max": max(totals), "min": min(totals)},
        "decisions": len(decisions),
        "candidates": len(totals),
        "candidate_tokens": sum(len(c.token_ids) for d in decisions for c in d.candidates),
        "ties": sum(decision.tie for decision in decisions),
        "kl": {**kl_of, "flag": kl.flag(kl_of["bound"])},
    }
    if budget is not None:
        made["kl"] |= {"budget": budget, "limited": _limited(decisions)}
    if deadline is not None:
        passed = decisions[-1].candidate.finish_reason == "deadline"
        made["deadline"] = {"ms": deadline, "passed": passed}
    if decisions[-1].accepted is not None:
        made["accepted"] = all(decision.accepted for decision in decisions)
    failed = Counter(name for decision in decisions for name in decision.score.failed)
    if failed:
        made["failed"] = dict(failed)
    if trace:
        made["trace"] = [_traced(decision) for decision in decisions]
    return made


def merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The report of an answer with several choices: counts are summed, scores averaged, KL is
    that of the farthest choice, ``accepted`` is whether all were; ``choices`` holds each choice's
    own report."""
    if len(reports) == 1:
        return reports[0]
    names = dict.fromkeys(name for made in reports for name in made["rewards"])
    failed = sum((Counter(made.get("failed", {})) for made in reports), Counter[str]())
    farthest = max(reports, key=lambda made: made["kl"]["bound"])
    return {
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
        **{
            count: sum(made[count] for made in reports)
            for count in ("decisions", "candidates", "candidate_tokens", "ties")
        },
        "kl": farthest["kl"],
        **({"failed": dict(failed)} if failed else {}),
        **({"deadline": _latest(reports)} if "deadline" in reports[0] else {}),
        **(
            {"accepted": all(made["accepted"] for made in reports)}
            if "accepted" in reports[0]
            else {}
        ),
        "choices": list(reports),
    }


def _latest(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The deadline of one that it ended, if it ended any."""
    latest: dict[str, Any] = max((made["deadline"] for made in reports), key=lambda d: d["passed"])
    return latest


def _kl(decisions: Sequence[Decision]) -> dict[str, Any]:
    """KL of the selections, and of the steering of the tokens taken, which is known exactly."""
    steering = sum(decision.candidate.kl or 0.0 for decision in decisions)
    estimator = decisions[-1].kl_estimator
    if estimator != "exact_path" and decisions[-1].candidate.kl is not None:
        estimator = f"{estimator}+exact_path"
    return {
        "bound": sum(decision.kl_bound for decision in decisions) + steering,
        "estimate": sum(decision.kl_estimate for decision in decisions) + steering,
        "estimator": estimator,
    }


def _limited(decisions: Sequence[Decision]) -> dict[str, int]:
    """What a budget left undone: decisions with fewer candidates, tokens that were not steered."""
    return {
        "decisions": sum(decision.limited for decision in decisions),
        "tokens": sum(decision.candidate.unsteered for decision in decisions),
    }


def _traced(decision: Decision) -> dict[str, Any]:
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
