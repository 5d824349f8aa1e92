"""KL from the distribution sampled from: bounds and estimates, in nats.

Sources: best-of-n, arXiv 2401.01879 (Theorem 3.1 and the ε_n estimator); blockwise, arXiv
2310.17022 section 4, a sum over decisions by the chain rule.
"""

import math
from typing import Literal

Flag = Literal["ok", "inspect", "high"]

INSPECT_NATS = 8.0
HIGH_NATS = 15.0


def best_of_n_bound(n: int) -> float:
    """KL(best-of-n ‖ p) ≤ log n − (n − 1)/n, in nats.

    Raises:
        ValueError: ``n`` < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_estimate(logp: float, n: int) -> float:
    """The ε_n estimator at ε = p(y) of the response taken, in nats; 0 ≤ it ≤ the bound.

    Args:
        logp: log p(y) in nats. With tied rewards, that of the reward level.
        n: candidates.
    """
    bound = best_of_n_bound(n)
    if logp >= 0 or n == 1:
        return 0.0
    eps = math.exp(logp)
    if eps < 1e-300:
        return bound
    if eps == 1.0:
        return -logp
    log_miss = math.log1p(-eps)
    missed = math.exp(n * log_miss)
    hit = -math.expm1(n * log_miss)
    return missed * (math.log(n) + (n - 1) * log_miss - (n - 1) / n) + hit * (math.log(hit) - logp)


def flag(nats: float) -> Flag:
    """``inspect`` from 8 nats, ``high`` from 15: where over-optimisation is to be expected."""
    if nats >= HIGH_NATS:
        return "high"
    return "inspect" if nats >= INSPECT_NATS else "ok"
