"""The ``alignment`` report of a response: its types, and the functions that build it."""

from collections import Counter
from collections.abc import Sequence
from typing import NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from cdserve import kl
from cdserve.decoders.candidate import Decision, Votes

_documented = with_config(ConfigDict(use_attribute_docstrings=True, extra="forbid"))


@_documented
class Spread(TypedDict):
    """Statistics of the scores of all candidates in all decisions."""

    mean: float
    """Mean score."""
    max: float
    """Highest score."""
    min: float
    """Lowest score."""


@_documented
class Limited(TypedDict):
    """Effect of the KL budget."""

    decisions: int
    """Decisions with fewer candidates than requested."""
    tokens: int
    """Tokens drawn from the base model instead of the steered distribution."""


@_documented
class KL(TypedDict):
    """KL divergence of the response's distribution from the base model's (docs/methods.md)."""

    bound: float
    """Upper bound on the KL divergence, in nats."""
    estimate: float
    """Estimate of the KL divergence from this one response, in nats."""
    estimator: str
    """Name of the estimator."""
    flag: kl.Flag
    """`inspect` from a bound of 8 nats, `high` from 15, else `ok`."""
    budget: NotRequired[float]
    """KL budget of the request, in nats; present if there is one."""
    limited: NotRequired[Limited]
    """Effect of the KL budget; present if there is one."""


@_documented
class Deadline(TypedDict):
    """Outcome of the request's deadline."""

    ms: int
    """Deadline of the request, in milliseconds."""
    passed: bool
    """Whether the deadline ended the response."""


@_documented
class Draws(TypedDict):
    """Number of candidates, for a policy that need not draw all of them or all of their tokens."""

    made: int
    """Candidates begun, including those ended early."""
    allowed: int
    """Most candidates: `n`, or fewer with a KL budget; for blocks the sum of `k`. The number begun
    if the deadline ended the draws."""


@_documented
class GateCounts(TypedDict):
    """Decisions of a policy with a gate."""

    searched: int
    """Decisions in which all candidates were drawn."""
    skipped: int
    """Decisions with fewer candidates, since one of them was good enough."""


@_documented
class UsedSampling(TypedDict):
    """Sampling parameters that replaced those of a request with temperature 0."""

    temperature: float
    """Sampling temperature."""
    top_p: float
    """Probability of the smallest set of most likely tokens that was sampled from."""
    top_k: int | None
    """Number of most likely tokens that were sampled from; null for all."""
    min_p: float
    """Lowest probability of a sampled token, relative to the most likely token's."""
    seed: int
    """Seed of the request; 0 if the request has none."""


@_documented
class TracedCandidate(TypedDict):
    """One candidate of a decision."""

    text: str
    """Text of the candidate, without the prefix before it."""
    tokens: int
    """Length of the candidate in tokens."""
    finish_reason: str | None
    """vLLM's finish reason, or `deadline`; null for a block that does not end the response."""
    logprob: float | None
    """log p of the candidate in nats; null if the log-probabilities were not computed."""
    score: float
    """Weighted sum of the rewards of the text so far, the candidate included; of `final_rewards` if
    all candidates have ended, and for the selected candidate that ends the response."""
    rewards: dict[str, float]
    """Each reward of the text so far, in units of the reward."""
    wins: NotRequired[float]
    """Comparisons that the candidate won, a tie being half; present for the selection
    `pairwise`."""
    until: NotRequired[str | int]
    """String or token of the policy's `until` that ended the block; present if one did."""
    answer: NotRequired[str | None]
    """Answer extracted from the candidate, null if there is none; present for a vote."""
    chosen: bool
    """Whether the candidate was selected."""


@_documented
class DecisionKL(TypedDict):
    """KL divergence of one decision, in nats; excludes token-level steering."""

    bound: float
    """Upper bound on the KL divergence of the decision."""
    estimate: float
    """Estimate of the KL divergence of the decision."""


@_documented
class TracedDecision(TypedDict):
    """One decision. The last one also lists candidates of other beams that were drawn after the
    selected response had ended.
    """

    kl: DecisionKL
    """Contribution of the decision to the response's KL."""
    candidates: list[TracedCandidate]
    """Candidates in the order in which they were drawn."""
    choice: NotRequired[int]
    """Index of the response among the request's; only in a stream's `alignment_decisions`."""


@_documented
class LiveCandidate(TypedDict):
    """One candidate that the engine is drawing."""

    text: str
    """Text of the candidate so far, without the prefix before it."""
    tokens: int
    """Length of the candidate so far, in tokens."""
    score: float | None
    """Weighted sum of the rewards of the text so far; null before the first value, and for
    policies with a reward that reads more than value heads and lengths."""


@_documented
class LiveDraw(TypedDict):
    """Candidates that are drawn at the same time, in a stream's `alignment_candidates`."""

    choice: int
    """Index of the response among the request's."""
    draw: int
    """Draws of the response before this one."""
    candidates: list[LiveCandidate]
    """Candidates in the order of their decision."""


@_documented
class AnswerVotes(TypedDict):
    """Votes for one answer."""

    answer: str
    """The answer."""
    count: int
    """Number of responses with the answer."""
    weight: float
    """Sum of the weights of their votes."""


@_documented
class VoteOutcome(TypedDict):
    """Outcome of a vote."""

    classes: list[AnswerVotes]
    """Answers by falling weight, the winner first; empty if no response had an answer, so that the
    response with the highest score was returned."""
    unanswered: int
    """Responses that cast no vote: without an answer, or cut short by the deadline."""


@_documented
class ComparisonCounts(TypedDict):
    """Comparisons by a pairwise judge."""

    judge: str
    """Name of the judge."""
    made: int
    """Pairs of responses compared, each in both orders. Equal texts are a tie without being
    compared."""
    disagreements: int
    """Pairs of `made` on which the judge's verdict depends on the order."""
    missed: int
    """Pairs that the deadline left uncompared; each counts as a tie."""


@_documented
class Ends(TypedDict):
    """Decisions between candidates of which some had ended the response and others had not."""

    decisions: int
    """Number of these decisions."""
    candidates: int
    """Candidates of these decisions."""
    ended: int
    """Candidates of these decisions that had ended the response."""
    selected: int
    """Number of these decisions that selected a candidate that had ended the response."""


@_documented
class Report(TypedDict):
    """How a response was decoded. With several choices, counts are sums over the choices, scores
    are means, and `kl` is that of the choice with the largest bound.
    """

    method: str
    """Method of the policy."""
    score: float
    """Weighted sum of the rewards, or `final_rewards`, of the returned text; 0 without rewards."""
    rewards: dict[str, float]
    """Each reward of the returned text, in units of the reward; empty without rewards."""
    scores: Spread
    """Mean, spread and extremes of the scores of all candidates."""
    decisions: int
    """Number of blocks in the response; 1 for methods that draw whole responses."""
    candidates: int
    """Candidates drawn, including those abandoned early."""
    candidate_tokens: int
    """Tokens of all candidates, and of the rollouts of `lookahead`, without the extra token that
    computes the value of a block."""
    ties: int
    """Decisions in which the two highest scores were equal (`worst_case`: worst-case sums; `vote`:
    weights of answers; `mbr`: sums of score and agreement; `pairwise`: wins, or a knockout's last
    pair)."""
    kl: KL
    """KL divergence of the response's distribution from the base model's."""
    ends: NotRequired[Ends]
    """Decisions between ended and unfinished candidates; present for searches that select blocks
    and continue from one of them."""
    sampling: NotRequired[UsedSampling]
    """Sampling parameters that replaced those of the request; present if any were replaced, because
    the request has temperature 0 and the policy has `sampling`."""
    votes: NotRequired[VoteOutcome]
    """Outcome of the vote; present for the selection `vote`. With several choices, the sum of
    their votes."""
    comparisons: NotRequired[ComparisonCounts]
    """Comparisons by a judge; present for the selection `pairwise`."""
    draws: NotRequired[Draws]
    """Candidates begun, of those allowed; present for `best_of_n` with `stop`, `at_once` or
    `race`, and for `blockwise_cd` with `gate`."""
    saved_tokens: NotRequired[int]
    """Tokens that all allowed candidates would have taken, estimated by the mean length of those
    considered (`race`: of ended responses), less `candidate_tokens`; present together with
    `draws`."""
    gate: NotRequired[GateCounts]
    """Decisions with all candidates and with fewer; present for `blockwise_cd` with `gate`."""
    deadline: NotRequired[Deadline]
    """Outcome of the deadline; present if the request has a `deadline_ms`."""
    accepted: NotRequired[bool]
    """Whether the response, or each of its blocks, passed the acceptance test; false if one is
    only the best of those drawn. Present for `rejection`, `cards` and `best_of_n` with
    `threshold`. If a refusal replaces the response, score, rewards and KL are those of the
    response replaced."""
    exact: NotRequired[bool]
    """Whether the response is a draw from p exp(r / η) / Z: it was accepted, and no score of the
    responses drawn exceeded `r_max`. Present for `rejection`."""
    failed: NotRequired[dict[str, int]]
    """Decisions made without a failed reward or judge, by its name (with `on_failure` `skip` or
    `base`); present if there are any. `rewards` omits a reward that failed in the last decision."""
    trace: NotRequired[list[TracedDecision]]
    """All decisions in order; present with `report: "trace"` or `"live"`."""
    choices: NotRequired[list["Report"]]
    """Report of each choice; present if there are several."""


def report(
    method: str,
    decisions: Sequence[Decision],
    trace: bool,
    budget: float | None = None,
    deadline: int | None = None,
    sampling: UsedSampling | None = None,
    ends: bool = False,
) -> Report:
    """Builds the report of one response.

    Args:
        method: name of the policy's method.
        decisions: all decisions of the response, in order; at least one.
        trace: whether to include the candidates of every decision.
        budget: upper limit on the KL bound, in nats; None for no limit.
        deadline: deadline of the request, in milliseconds; None for no deadline.
        sampling: sampling parameters that replaced the request's; None if the request's were used.
        ends: whether to count the decisions between ended and unfinished candidates.
    """
    last = decisions[-1].score
    totals = [score.total for decision in decisions for score in decision.scores]
    drawn = [c for decision in decisions for c in (*decision.candidates, *decision.unused)]
    result: Report = {
        "method": method,
        "score": last.total,
        "rewards": dict(last.rewards),
        "scores": {"mean": sum(totals) / len(totals), "max": max(totals), "min": min(totals)},
        "decisions": len(decisions),
        "candidates": len(drawn),
        "candidate_tokens": sum(len(candidate.token_ids) for candidate in drawn)
        + sum(map(_rollout_tokens, decisions)),
        "ties": sum(decision.tie for decision in decisions),
        "kl": _kl(decisions),
    }
    if budget is not None:
        result["kl"]["budget"] = budget
        result["kl"]["limited"] = _limited(decisions)
    if ends:
        result["ends"] = _ends(decisions)
    if sampling is not None:
        result["sampling"] = sampling
    if (votes := decisions[-1].votes) is not None:
        result["votes"] = _votes(votes)
    if (compared := decisions[-1].comparisons) is not None:
        result["comparisons"] = {
            "judge": compared.judge,
            "made": compared.made,
            "disagreements": compared.disagreements,
            "missed": compared.missed,
        }
    draws = [decision.draws for decision in decisions if decision.draws is not None]
    if draws:
        made, allowed = sum(each.made for each in draws), sum(each.allowed for each in draws)
        result["draws"] = {"made": made, "allowed": allowed}
        result["saved_tokens"] = sum(each.saved_tokens for each in draws)
    if decisions[-1].searched is not None:
        searched = sum(decision.searched is True for decision in decisions)
        result["gate"] = {"searched": searched, "skipped": len(decisions) - searched}
    if deadline is not None:
        passed = decisions[-1].candidate.finish_reason == "deadline"
        result["deadline"] = {"ms": deadline, "passed": passed}
    if decisions[-1].accepted is not None:
        result["accepted"] = all(decision.accepted is not False for decision in decisions)
    if decisions[-1].exact is not None:
        result["exact"] = all(decision.exact for decision in decisions)
    failed = Counter(name for decision in decisions for name in decision.score.failed)
    if failed:
        result["failed"] = dict(failed)
    if trace:
        result["trace"] = [traced(decision) for decision in decisions]
    return result


def _rollout_tokens(decision: Decision) -> int:
    """Tokens of the rollouts of a decision; candidates of the same tokens share one."""
    return sum(
        score.rollout_tokens for score in {id(score): score for score in decision.scores}.values()
    )


def merged(reports: Sequence[Report]) -> Report:
    """Merges the reports of a request's choices; a single report is returned unchanged.

    Counts are summed and scores averaged; ``kl`` is that of the choice with the largest bound,
    ``accepted`` holds if all choices were, ``sampling`` is the same for all, and ``choices`` lists
    the reports.
    """
    if len(reports) == 1:
        return reports[0]
    names = dict.fromkeys(name for each in reports for name in each["rewards"])
    failed = sum((Counter(each.get("failed", {})) for each in reports), Counter[str]())
    result: Report = {
        "method": reports[0]["method"],
        "score": _mean([each["score"] for each in reports]),
        "rewards": {
            name: _mean([each["rewards"][name] for each in reports if name in each["rewards"]])
            for name in names
        },
        "scores": {
            "mean": _mean([each["scores"]["mean"] for each in reports]),
            "max": max(each["scores"]["max"] for each in reports),
            "min": min(each["scores"]["min"] for each in reports),
        },
        "decisions": sum(each["decisions"] for each in reports),
        "candidates": sum(each["candidates"] for each in reports),
        "candidate_tokens": sum(each["candidate_tokens"] for each in reports),
        "ties": sum(each["ties"] for each in reports),
        "kl": max((each["kl"] for each in reports), key=lambda item: item["bound"]),
    }
    if failed:
        result["failed"] = dict(failed)
    if "ends" in reports[0]:
        counts = [each["ends"] for each in reports]
        result["ends"] = {
            "decisions": sum(each["decisions"] for each in counts),
            "candidates": sum(each["candidates"] for each in counts),
            "ended": sum(each["ended"] for each in counts),
            "selected": sum(each["selected"] for each in counts),
        }
    if "sampling" in reports[0]:
        result["sampling"] = reports[0]["sampling"]
    if "votes" in reports[0]:
        result["votes"] = _merged_votes([each["votes"] for each in reports])
    if "comparisons" in reports[0]:
        compared = [each["comparisons"] for each in reports]
        result["comparisons"] = {
            "judge": compared[0]["judge"],
            "made": sum(each["made"] for each in compared),
            "disagreements": sum(each["disagreements"] for each in compared),
            "missed": sum(each["missed"] for each in compared),
        }
    if "draws" in reports[0]:
        result["draws"] = {
            "made": sum(each["draws"]["made"] for each in reports),
            "allowed": sum(each["draws"]["allowed"] for each in reports),
        }
        result["saved_tokens"] = sum(each["saved_tokens"] for each in reports)
    if "gate" in reports[0]:
        result["gate"] = {
            "searched": sum(each["gate"]["searched"] for each in reports),
            "skipped": sum(each["gate"]["skipped"] for each in reports),
        }
    if "deadline" in reports[0]:
        result["deadline"] = _merged_deadline(reports)
    if "accepted" in reports[0]:
        result["accepted"] = all(each["accepted"] for each in reports)
    if "exact" in reports[0]:
        result["exact"] = all(each["exact"] for each in reports)
    result["choices"] = list(reports)
    return result


def _merged_deadline(reports: Sequence[Report]) -> Deadline:
    """The deadline of a choice that it ended, if there is one."""
    return max((each["deadline"] for each in reports), key=lambda item: item["passed"])


def _votes(votes: Votes) -> VoteOutcome:
    """The outcome of a vote, as the wire format has it."""
    classes: list[AnswerVotes] = [
        {"answer": each.answer, "count": each.count, "weight": each.weight}
        for each in votes.classes
    ]
    return {"classes": classes, "unanswered": votes.unanswered}


def _merged_votes(votes: Sequence[VoteOutcome]) -> VoteOutcome:
    """The sum of several votes, its answers by falling weight."""
    merged: dict[str, AnswerVotes] = {}
    for each in (each for vote in votes for each in vote["classes"]):
        answer = each["answer"]
        total = merged.setdefault(answer, {"answer": answer, "count": 0, "weight": 0.0})
        total["count"] += each["count"]
        total["weight"] += each["weight"]
    classes = sorted(merged.values(), key=lambda total: -total["weight"])
    return {"classes": classes, "unanswered": sum(vote["unanswered"] for vote in votes)}


def _kl(decisions: Sequence[Decision]) -> KL:
    """KL of the selections plus the exact KL of the steering of the selected tokens."""
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


def _ends(decisions: Sequence[Decision]) -> Ends:
    """Counts of the decisions in which some candidates had ended and others had not."""
    ended = [[c.finish_reason is not None for c in decision.candidates] for decision in decisions]
    mixed = [
        (each, decision.chosen)
        for each, decision in zip(ended, decisions, strict=True)
        if any(each) and not all(each)
    ]
    return {
        "decisions": len(mixed),
        "candidates": sum(len(each) for each, _ in mixed),
        "ended": sum(sum(each) for each, _ in mixed),
        "selected": sum(each[chosen] for each, chosen in mixed),
    }


def _limited(decisions: Sequence[Decision]) -> Limited:
    """Effect of a KL budget on the decisions and on the selected tokens."""
    return {
        "decisions": sum(decision.limited for decision in decisions),
        "tokens": sum(decision.candidate.unsteered for decision in decisions),
    }


def traced(decision: Decision) -> TracedDecision:
    """A decision with its candidates, as the wire format has it."""
    result: TracedDecision = {
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
    for each, candidate in zip(result["candidates"], decision.candidates, strict=True):
        if candidate.until is not None:
            each["until"] = candidate.until
    if decision.votes is not None:
        for each, candidate in zip(result["candidates"], decision.candidates, strict=True):
            each["answer"] = candidate.answer
    if decision.comparisons is not None:
        for each, wins in zip(result["candidates"], decision.comparisons.wins, strict=True):
            each["wins"] = wins
    return result


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
