"""Bounds on and estimates of the KL divergence from the sampled distribution p, in nats.

Sources: best-of-n, arXiv 2401.01879 (Theorem 3.1 and the ε_n estimator); blockwise, arXiv
2310.17022 section 4, a sum over decisions by the chain rule; best-of-Poisson, arXiv 2506.19248.
"""

import math
from typing import Literal

Flag = Literal["ok", "inspect", "high"]

INSPECT_NATS = 8.0
HIGH_NATS = 15.0
_MAX_STEPS = 100


def best_of_n_bound(n: float) -> float:
    """Bound KL(best-of-n ‖ p) ≤ log n − (n − 1)/n, in nats (arXiv 2401.01879, Theorem 3.1).

    The bound holds for every rule that returns one of n i.i.d. draws: no rule hits a set A with a
    probability above 1 − (1 − p(A))^n, so best-of-n's density majorises that of the rule.

    Args:
        n: number of draws; the formula interpolates between integers.

    Raises:
        ValueError: ``n`` < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_estimate(logp: float, n: int) -> float:
    """Estimate of KL(best-of-n ‖ p) by ε_n at ε = p(y), in nats (arXiv 2401.01879).

    The estimate is between 0 and the bound.

    Args:
        logp: log p(y) of the selected response y, in nats; with tied rewards, log p of the
            responses with the same reward.
        n: number of candidates.
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


def effective_n(bound: float) -> float:
    """The real number n for which best-of-n has this bound: log n − 1 + 1/n = ``bound``.

    Raises:
        ValueError: ``bound`` is negative or not finite.
    """
    if not 0 <= bound < math.inf:
        raise ValueError(f"bound must be finite and at least 0 nats, got {bound}")
    # Newton's method from above: the left side is convex in log n.
    log_n = bound + math.sqrt(2.0 * bound)
    for _ in range(_MAX_STEPS):
        step = log_n + math.expm1(-log_n) - bound
        if step <= 1e-15 * bound:
            break
        log_n += step / math.expm1(-log_n)
    return math.exp(log_n) if log_n < 709 else math.inf


def largest_n(budget: float, limit: int) -> int:
    """The largest n from 1 to ``limit`` whose bound is within ``budget`` nats; n = 1 costs none."""
    low, high = 1, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if best_of_n_bound(middle) <= budget else (low, middle - 1)
    return low


def win_rate_bound(n: int) -> float:
    """Bound n / (n + 1) on the win-rate of best-of-n against p; exact if no rewards tie.

    Raises:
        ValueError: ``n`` < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return n / (n + 1)


def best_of_poisson_bound(mu: float) -> float:
    """Bound KL(best-of-Poisson ‖ p) ≤ log(1 + μ) − 1 + ∫₀¹ e^{μ(u−1)} / (1 + μu) du, in nats.

    With continuous rewards the bound is the KL: that of the density (μu + 1) e^{μ(u−1)} of the
    reward's quantile u from the uniform one (arXiv 2506.19248).

    Args:
        mu: μ ≥ 0, for the best of 1 + Poisson(μ) draws.
    """
    return max(0.0, _poisson_kl(mu, 1.0))


def best_of_poisson_estimate(logp: float, mu: float) -> float:
    """Estimate of KL(best-of-Poisson ‖ p), in nats: the ε estimator for 1 + Poisson(μ) draws.

    The density is kept up to the quantile 1 − ε, with ε = p(y), and constant above it. The estimate
    is between 0 and the bound.

    Args:
        logp: log p(y) of the selected response y, in nats; with tied rewards, log p of the
            responses with the same reward.
        mu: μ ≥ 0, for the best of 1 + Poisson(μ) draws.
    """
    bound = best_of_poisson_bound(mu)
    if logp >= 0 or mu == 0:
        return 0.0
    eps = math.exp(logp)
    if eps < 1e-300:
        return bound
    if eps == 1.0:
        return -logp
    hit = -math.expm1(math.log1p(-eps) - mu * eps)
    estimate = _poisson_kl(mu, 1.0 - eps) + hit * (math.log(hit) - logp)
    return min(max(0.0, estimate), bound, -logp)


def _poisson_kl(mu: float, top: float) -> float:
    """∫₀ᵗ g log g du for best-of-Poisson's density g, up to the quantile t = ``top``."""
    below = top * math.exp(mu * (top - 1.0))
    log_g = math.log1p(mu * top) + mu * (top - 1.0)
    return below * (log_g - 1.0) + _poisson_integral(mu, top)


def _poisson_integral(mu: float, top: float) -> float:
    """∫₀ᵗ e^{μ(u−1)} / (1 + μu) du for t = ``top``, from the series of the exponential integral.

    All terms are positive and weighted by Poisson probabilities, so about μ terms contribute.
    """
    if mu < 1e-16:
        return top
    log_x = math.log1p(mu * top)
    total = log_x * math.exp(-1.0 - mu)
    for k in range(1, int(mu + 12.0 * math.sqrt(mu)) + 40):
        term = math.exp(k * log_x - math.lgamma(k + 1) - 1.0 - mu)
        total += -math.expm1(-k * log_x) * term / k
    return total / mu


def flag(nats: float) -> Flag:
    """Flag for a KL bound: ``inspect`` from 8 nats, ``high`` from 15 (over-optimisation likely)."""
    if nats >= HIGH_NATS:
        return "high"
    return "inspect" if nats >= INSPECT_NATS else "ok"
