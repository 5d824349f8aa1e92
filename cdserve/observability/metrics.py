"""Prometheus metrics that cdserve adds to vLLM's on ``/metrics``."""

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar, get_args

from prometheus_client import Counter, Gauge, Histogram

from cdserve.decoders import Decision
from cdserve.errors import RefusalReason

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
_SCORES = (-100, -30, -10, -3, -1, -0.3, -0.1, 0, 0.1, 0.3, 1, 3, 10, 30, 100)
_NATS = (0.01, 0.03, 0.1, 0.3, 1, 2, 4, 8, 15, 30, 60)

GENERATE_SECONDS = Histogram(
    "cdserve_generate_seconds",
    "Time to generate the candidates of a draw, in-engine values included, in seconds.",
    buckets=_SECONDS,
)
SCORE_SECONDS = Histogram(
    "cdserve_score_seconds",
    "Time to compute the rewards of a draw's candidates, in seconds.",
    buckets=_SECONDS,
)
SELECT_SECONDS = Histogram(
    "cdserve_select_seconds",
    "Time to select a candidate once the scores are known, in seconds.",
    buckets=(1e-5, 3e-5, 1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1),
)
SCORER_BATCH_SIZE = Histogram(
    "cdserve_scorer_batch_size",
    "Responses in one batch of a reward model, across requests.",
    ["reward"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
SCORER_TOKENS = Counter("cdserve_scorer_tokens", "Input tokens of a reward model.", ["reward"])
SCORER_CACHED_TOKENS = Counter(
    "cdserve_scorer_cached_tokens",
    "Input tokens of a reward model that its prefix cache served.",
    ["reward"],
)

RESPONSES = Counter(
    "cdserve_responses",
    "Responses of requests with a policy, by outcome: vLLM's finish reason, error or cancelled.",
    ["method", "outcome"],
)
RUNNING_CANDIDATES = Gauge(
    "cdserve_running_candidates",
    "Candidates running in the engine.",
    multiprocess_mode="livesum",
)
WAITING_CANDIDATES = Gauge(
    "cdserve_waiting_candidates",
    "Candidates waiting for a slot in the engine.",
    multiprocess_mode="livesum",
)
REJECTED = Counter(
    "cdserve_rejected",
    "Requests rejected with 503 or 429 before any work, by the limit reached: server or key.",
    ["limit"],
)
DEADLINES = Counter(
    "cdserve_deadlines_passed", "Finished responses ended by their deadline.", ["method"]
)
REFUSED = Counter(
    "cdserve_refused",
    "Requests rejected with 400 by cdserve's own checks, by reason: invalid (an unknown or "
    "malformed field, value or name), limit (more than this server accepts) or combination (values "
    "that are valid, but not together).",
    ["reason"],
)
for _reason in get_args(RefusalReason):
    REFUSED.labels(_reason)  # from 0, so that a rate includes the first refusal
GUARD_REJECTIONS = Counter(
    "cdserve_guard_rejections",
    "Finished responses with a score below the policy's threshold, by the policy's on_reject: "
    "best, refuse or error.",
    ["method", "on_reject"],
)
FIRST_BLOCK_SECONDS = Histogram(
    "cdserve_time_to_first_block_seconds",
    "Time from the start of a response in the engine to its first output, in seconds.",
    ["method"],
    buckets=_SECONDS,
)
INTER_BLOCK_SECONDS = Histogram(
    "cdserve_inter_block_seconds",
    "Time between two outputs (blocks or steered tokens) of a response, in seconds.",
    ["method"],
    buckets=_SECONDS,
)
DECISIONS = Counter("cdserve_decisions", "Decisions in finished responses.", ["method"])
TIES = Counter("cdserve_ties", "Decisions in which the two highest scores were equal.", ["method"])
LIMITED = Counter(
    "cdserve_budget_limited_decisions",
    "Decisions with fewer candidates, or with unsteered tokens, because of a KL budget.",
    ["method"],
)
CANDIDATES = Counter(
    "cdserve_candidates", "Candidates generated for finished responses.", ["method"]
)
CANDIDATE_TOKENS = Counter(
    "cdserve_candidate_tokens", "Tokens generated for candidates of finished responses.", ["method"]
)
DISCARDED_TOKENS = Counter(
    "cdserve_discarded_tokens",
    "Candidate tokens that were generated and then discarded.",
    ["method"],
)
DRAWS_MADE = Counter(
    "cdserve_draws_made",
    "Candidates begun for finished responses whose policy need not draw all of them.",
    ["method"],
)
DRAWS_ALLOWED = Counter(
    "cdserve_draws_allowed",
    "Candidates allowed for finished responses whose policy need not draw all of them.",
    ["method"],
)
SAVED_TOKENS = Counter(
    "cdserve_saved_tokens",
    "Estimate of the candidate tokens that finished responses saved by drawing fewer candidates "
    "than allowed, or parts of them.",
    ["method"],
)
GATED_DECISIONS = Counter(
    "cdserve_gated_decisions",
    "Decisions of finished responses whose policy has a gate: searched, with all candidates, or "
    "skipped, with fewer.",
    ["method", "outcome"],
)
SCORES = Histogram(
    "cdserve_score",
    "Scores of finished responses: weighted sums of their rewards.",
    ["method"],
    buckets=_SCORES,
)
REWARDS = Histogram(
    "cdserve_reward",
    "Rewards of finished responses, in units of each reward.",
    ["reward"],
    buckets=_SCORES,
)
KL_BOUND = Histogram(
    "cdserve_kl_bound_nats",
    "Upper bounds on the KL divergence of finished responses, in nats.",
    ["method"],
    buckets=_NATS,
)
REWARD_FAILURES = Counter(
    "cdserve_reward_failures",
    "Decisions in which a reward or a pairwise judge failed or timed out, by its on_failure "
    "setting.",
    ["reward", "on_failure"],
)
COMPARE_SECONDS = Histogram(
    "cdserve_compare_seconds",
    "Time of a pairwise judge for one round of a tournament, in seconds.",
    buckets=_SECONDS,
)
COMPARISONS = Counter(
    "cdserve_comparisons",
    "Pairs of responses that a pairwise judge compared, in both orders: agreed, or disagreed if "
    "its verdict depends on the order.",
    ["judge", "outcome"],
)
SCORER_WAIT_SECONDS = Histogram(
    "cdserve_scorer_wait_seconds",
    "Time a response waited for its reward-model batch to start, in seconds.",
    ["reward"],
    buckets=_SECONDS,
)
REWARD_INFO = Gauge(
    "cdserve_reward_info",
    "Constant 1 for each configured reward.",
    ["reward", "kind"],
    multiprocess_mode="max",
)
TASKS = Gauge(
    "cdserve_tasks",
    "Tasks in the server's event loop. Unbounded growth indicates a leak.",
    multiprocess_mode="livesum",
)
MEMBER_INFO = Gauge(
    "cdserve_member_info",
    "Constant 1 for each configured member model.",
    ["member"],
    multiprocess_mode="max",
)


class _Output(Protocol):
    finish_reason: str | None


Output = TypeVar("Output", bound=_Output)


async def observe_outputs(
    method: str, outputs: AsyncGenerator[Sequence[Output], None], on_end: Callable[[str], object]
) -> AsyncGenerator[Sequence[Output], None]:
    """Yields a response's outputs unchanged and records their timing and the outcome.

    Args:
        method: method of the policy.
        outputs: outputs of the response, block by block.
        on_end: called once with the outcome: vLLM's finish reason, ``error`` or ``cancelled``.
    """
    last, histogram, outcome = time.perf_counter(), FIRST_BLOCK_SECONDS, "cancelled"
    try:
        async with aclosing(outputs):
            async for block in outputs:
                now = time.perf_counter()
                histogram.labels(method).observe(now - last)
                last, histogram = now, INTER_BLOCK_SECONDS
                outcome = block[-1].finish_reason or outcome
                yield block
    except Exception:
        outcome = "error"
        raise
    finally:
        RESPONSES.labels(method, outcome).inc()
        on_end(outcome)


def count_response(report: Mapping[str, Any], decisions: Sequence[Decision]) -> None:
    """Adds a finished response to the counters and histograms.

    Args:
        report: report of the response.
        decisions: all decisions of the response.
    """
    method = report["method"]
    kept_tokens = sum(len(d.candidate.token_ids) for d in decisions)
    limited = sum(d.limited or d.candidate.unsteered > 0 for d in decisions)
    DECISIONS.labels(method).inc(report["decisions"])
    TIES.labels(method).inc(report["ties"])
    LIMITED.labels(method).inc(limited)
    CANDIDATES.labels(method).inc(report["candidates"])
    CANDIDATE_TOKENS.labels(method).inc(report["candidate_tokens"])
    DISCARDED_TOKENS.labels(method).inc(report["candidate_tokens"] - kept_tokens)
    if "draws" in report:
        DRAWS_MADE.labels(method).inc(report["draws"]["made"])
        DRAWS_ALLOWED.labels(method).inc(report["draws"]["allowed"])
        SAVED_TOKENS.labels(method).inc(report["saved_tokens"])
    for outcome, count in report.get("gate", {}).items():
        GATED_DECISIONS.labels(method, outcome).inc(count)
    SCORES.labels(method).observe(report["score"])
    for name, reward in report["rewards"].items():
        REWARDS.labels(name).observe(reward)
    KL_BOUND.labels(method).observe(report["kl"]["bound"])
    if report.get("deadline", {}).get("passed"):
        DEADLINES.labels(method).inc()
