"""KL from the distribution sampled from: bounds and estimates, in nats.

Sources: best-of-n, arXiv 2401.01879 (Theorem 3.1 and the ε_n estimator); blockwise, arXiv
2310.17022 section 4, a sum over decisions by the chain rule; best-of-Poisson, arXiv 2506.19248.
"""

import math
from typing import Literal

Flag = Literal["ok", "inspect", "high"]

INSPECT_NATS = 8.0
HIGH_NATS = 15.0
_MAX_STEPS = 100


def best_of_n_bound(n: int) -> float:
    """KL(best-of-n ‖ p) ≤ log n − (n − 1)/n, in nats.

    It bounds every rule that returns one of n i.i.d. draws, however it picks: no set A can be hit
    more often than 1 − (1 − p(A))^n, so best-of-n's density majorises the rule's.

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


def effective_n(bound: float) -> float:
    """The n, not always whole, whose best-of-n has this bound: log n − 1 + 1/n = ``bound``.

    Raises:
        ValueError: ``bound`` is negative or not finite.
    """
    if not 0 <= bound < math.inf:
        raise ValueError(f"bound must be a number of nats from 0, got {bound}")
    log_n = bound + math.sqrt(2.0 * bound)  # Newton from above: the function of log n is convex
    for _ in range(_MAX_STEPS):
        step = log_n + math.expm1(-log_n) - bound
        if step <= 1e-15 * bound:
            break
        log_n += step / math.expm1(-log_n)
    return math.exp(log_n) if log_n < 709 else math.inf


def largest_n(budget: float, most: int) -> int:
    """The largest n from 1 to ``most`` whose bound is within a budget of nats; 1 costs nothing."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if best_of_n_bound(middle) <= budget else (low, middle - 1)
    return low


def win_rate_bound(n: int) -> float:
    """Best-of-n's win-rate against p is at most n / (n + 1), which it has where no two rewards tie.

    Raises:
        ValueError: ``n`` < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return n / (n + 1)


def best_of_poisson_bound(mu: float) -> float:
    """KL(best-of-Poisson ‖ p) ≤ log(1 + μ) − 1 + ∫₀¹ e^{μ(u−1)} / (1 + μu) du, in nats.

    It is the KL where rewards are continuous: that of the density (μu + 1) e^{μ(u−1)} from 1.

    Args:
        mu: μ ≥ 0; the best of 1 + Poisson(μ) draws is returned.
    """
    return max(0.0, _poisson_kl(mu, 1.0))


def best_of_poisson_estimate(logp: float, mu: float) -> float:
    """The ε estimator of best-of-n, for 1 + Poisson(μ) draws; 0 ≤ it ≤ the bound.

    The draws that beat all but a share ε = p(y) keep their density, the rest share one level.

    Args:
        logp: log p(y) of the response taken, in nats. With tied rewards, that of the reward level.
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
    """∫₀ᵗ g log g du of best-of-Poisson's density g, up to the quantile t = ``top``."""
    below = top * math.exp(mu * (top - 1.0))
    log_g = math.log1p(mu * top) + mu * (top - 1.0)
    return below * (log_g - 1.0) + _poisson_integral(mu, top)


def _poisson_integral(mu: float, top: float) -> float:
    """∫₀ᵗ e^{μ(u−1)} / (1 + μu) du, from the series of the exponential integral.

    All terms are positive; they are a Poisson law's, so there are about μ of them.
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
    """``inspect`` from 8 nats, ``high`` from 15: where over-optimisation is to be expected."""
    if nats >= HIGH_NATS:
        return "high"
    return "inspect" if nats >= INSPECT_NATS else "ok"
