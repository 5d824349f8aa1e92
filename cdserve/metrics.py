"""cdserve's own metrics, beside vLLM's on ``/metrics``."""

from prometheus_client import Counter, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)

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
