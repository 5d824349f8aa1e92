"""cdserve's own metrics, beside vLLM's on ``/metrics``."""

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from cdserve.decoders import Decision

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)
_SCORES = (-100, -30, -10, -3, -1, -0.3, -0.1, 0, 0.1, 0.3, 1, 3, 10, 30, 100)
_NATS = (0.01, 0.03, 0.1, 0.3, 1, 2, 4, 8, 15, 30, 60)

GENERATE_SECONDS = Histogram(
    "cdserve_generate_seconds",
    "Time a draw of candidates took, values computed in the engine included, in seconds.",
    buckets=_SECONDS,
)
SCORE_SECONDS = Histogram(
    "cdserve_score_seconds",
    "Time the rewards of a draw took after it, in seconds.",
    buckets=_SECONDS,
)
SELECT_SECONDS = Histogram(
    "cdserve_select_seconds",
    "Time from a decision's scores to the decision, in seconds.",
    buckets=(1e-5, 3e-5, 1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1),
)
SCORER_BATCH_SIZE = Histogram(
    "cdserve_scorer_batch_size",
    "Responses scored together, of all requests, by a reward model.",
    ["reward"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
SCORER_TOKENS = Counter("cdserve_scorer_tokens", "Tokens that a reward model has read.", ["reward"])
SCORER_CACHED_TOKENS = Counter(
    "cdserve_scorer_cached_tokens",
    "Those of them that its prefix cache had, of an earlier block or another candidate.",
    ["reward"],
)

RESPONSES = Counter(
    "cdserve_responses",
    "Responses under a policy by how they ended: vLLM's finish reason, error, or cancelled.",
    ["method", "outcome"],
)
RUNNING_CANDIDATES = Gauge(
    "cdserve_running_candidates",
    "Candidates that run in the engine.",
    multiprocess_mode="livesum",
)
WAITING_CANDIDATES = Gauge(
    "cdserve_waiting_candidates",
    "Candidates that wait for a slot in the engine.",
    multiprocess_mode="livesum",
)
REJECTED = Counter(
    "cdserve_rejected",
    "Requests refused with 503 or 429 before any work, by whose limit it was: server or key.",
    ["limit"],
)
DEADLINES = Counter(
    "cdserve_deadlines_passed", "Finished responses that their deadline ended.", ["method"]
)
REFUSED = Counter("cdserve_refused", "Requests whose alignment was refused with a 400.")
FIRST_BLOCK_SECONDS = Histogram(
    "cdserve_time_to_first_block_seconds",
    "Time from a response's start in the engine to its first output, in seconds.",
    ["method"],
    buckets=_SECONDS,
)
INTER_BLOCK_SECONDS = Histogram(
    "cdserve_inter_block_seconds",
    "Time between two outputs of a response, in seconds: blocks, or steered tokens.",
    ["method"],
    buckets=_SECONDS,
)
DECISIONS = Counter("cdserve_decisions", "Decisions of finished responses.", ["method"])
TIES = Counter("cdserve_ties", "Those of them whose two best scores were equal.", ["method"])
LIMITED = Counter(
    "cdserve_budget_limited_decisions",
    "Those of them that a KL budget left fewer candidates, or tokens unsteered.",
    ["method"],
)
CANDIDATES = Counter("cdserve_candidates", "Candidates of finished responses.", ["method"])
CANDIDATE_TOKENS = Counter("cdserve_candidate_tokens", "Tokens of the candidates.", ["method"])
DISCARDED_TOKENS = Counter(
    "cdserve_discarded_tokens", "Those of them in candidates that were not taken.", ["method"]
)
SCORES = Histogram(
    "cdserve_score",
    "Weighted sum of the rewards of finished responses.",
    ["method"],
    buckets=_SCORES,
)
REWARDS = Histogram(
    "cdserve_reward",
    "Rewards of finished responses, in units of the reward.",
    ["reward"],
    buckets=_SCORES,
)
KL_BOUND = Histogram(
    "cdserve_kl_bound_nats", "KL bound of finished responses, in nats.", ["method"], buckets=_NATS
)
REWARD_FAILURES = Counter(
    "cdserve_reward_failures",
    "Decisions for which a reward failed or timed out, by what the operator declared for it.",
    ["reward", "on_failure"],
)
SCORER_WAIT_SECONDS = Histogram(
    "cdserve_scorer_wait_seconds",
    "Time a response waited for its batch to begin, in seconds.",
    ["reward"],
    buckets=_SECONDS,
)
REWARD_INFO = Gauge(
    "cdserve_reward_info",
    "1 for each reward served.",
    ["reward", "kind"],
    multiprocess_mode="max",
)
TASKS = Gauge(
    "cdserve_tasks",
    "Tasks of the server's event loop; what grows for ever is a leak.",
    multiprocess_mode="livesum",
)
MEMBER_INFO = Gauge(
    "cdserve_member_info", "1 for each member served.", ["member"], multiprocess_mode="max"
)


class _Output(Protocol):
    finish_reason: str | None


Output = TypeVar("Output", bound=_Output)


async def observed(
    method: str, outputs: AsyncGenerator[Output, None], on_end: Callable[[str], object]
) -> AsyncGenerator[Output, None]:
    """A response's outputs as they are, with their start and their end counted.

    Args:
        on_end: told how it ended: vLLM's finish reason, ``error`` or ``cancelled``.
    """
    last, seconds, outcome = time.perf_counter(), FIRST_BLOCK_SECONDS, "cancelled"
    try:
        async with aclosing(outputs):
            async for output in outputs:
                now = time.perf_counter()
                seconds.labels(method).observe(now - last)
                last, seconds = now, INTER_BLOCK_SECONDS
                outcome = output.finish_reason or outcome
                yield output
    except Exception:
        outcome = "error"
        raise
    finally:
        RESPONSES.labels(method, outcome).inc()
        on_end(outcome)


def count(report: Mapping[str, Any], decisions: Sequence[Decision]) -> None:
    """Counts what a finished response took, by its report and its decisions."""
    method = report["method"]
    taken = sum(len(d.candidate.token_ids) for d in decisions)
    limited = sum(d.limited or d.candidate.unsteered > 0 for d in decisions)
    DECISIONS.labels(method).inc(report["decisions"])
    TIES.labels(method).inc(report["ties"])
    LIMITED.labels(method).inc(limited)
    CANDIDATES.labels(method).inc(report["candidates"])
    CANDIDATE_TOKENS.labels(method).inc(report["candidate_tokens"])
    DISCARDED_TOKENS.labels(method).inc(report["candidate_tokens"] - taken)
    SCORES.labels(method).observe(report["score"])
    for name, reward in report["rewards"].items():
        REWARDS.labels(name).observe(reward)
    KL_BOUND.labels(method).observe(report["kl"]["bound"])
    if report.get("deadline", {}).get("passed"):
        DEADLINES.labels(method).inc()
