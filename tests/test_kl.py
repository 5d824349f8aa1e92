"""KL bounds and estimates: published values, integrals and inequalities."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdserve.kl import (
    best_of_n_bound,
    best_of_n_estimate,
    best_of_poisson_bound,
    best_of_poisson_estimate,
    effective_n,
    flag,
    largest_n,
    win_rate_bound,
)

COUNTS = st.integers(1, 10**6)
LOGPROBS = st.floats(-60, -1e-6)
reproducible = settings(derandomize=True, deadline=None, max_examples=300)


class TestBound:
    @pytest.mark.parametrize(
        ("n", "nats"),
        [
            (1, 0),
            (2, 0.1931),
            (4, 0.6363),
            (6, 0.9584),
            (8, 1.2044),
            (16, 1.8351),
            (32, 2.4970),
            (50, 2.9320),
            (64, 3.1745),
            (128, 3.8598),
            (1024, 5.9324),
        ],
    )
    def test_best_of_n_bound_matches_published_values(self, n: int, nats: float) -> None:
        assert best_of_n_bound(n) == pytest.approx(nats, abs=5e-5)

    @pytest.mark.parametrize(
        ("k", "decisions", "n"),
        [(6, 3, 47.2), (4, 4, 33.6), (4, 8, 440.6), (8, 2, 29.2), (8, 4, 335)],
    )
    def test_summed_bounds_lie_between_those_of_neighbouring_n(
        self, k: int, decisions: int, n: float
    ) -> None:
        spent = decisions * best_of_n_bound(k)
        assert best_of_n_bound(math.floor(n)) < spent < best_of_n_bound(math.ceil(n + 0.5))

    @pytest.mark.parametrize(
        ("k", "decisions", "n"),
        [(6, 3, 47.2), (4, 4, 33.6), (4, 8, 440.6), (8, 2, 29.2), (8, 4, 335), (32, 2, 400)],
    )
    def test_effective_n_matches_published_values(self, k: int, decisions: int, n: float) -> None:
        assert effective_n(decisions * best_of_n_bound(k)) == pytest.approx(n, rel=2e-3)

    @reproducible
    @given(st.floats(0, 600))
    def test_effective_n_inverts_the_bound_for_any_nats(self, nats: float) -> None:
        log_n = math.log(effective_n(nats))
        assert log_n + math.expm1(-log_n) == pytest.approx(nats, rel=1e-9, abs=1e-14)

    @reproducible
    @given(st.integers(1, 10**9))
    def test_effective_n_inverts_the_bound_of_integers(self, n: int) -> None:
        assert effective_n(best_of_n_bound(n)) == pytest.approx(n, rel=1e-6)

    def test_effective_n_is_infinite_for_huge_bounds_and_rejects_invalid_ones(self) -> None:
        assert effective_n(1e6) == math.inf
        for nats in (-1e-9, math.nan, math.inf):
            with pytest.raises(ValueError, match="at least 0 nats"):
                effective_n(nats)

    @reproducible
    @given(st.floats(0, 20), st.integers(1, 2000))
    def test_largest_n_is_within_the_budget_and_the_next_n_is_not(
        self, nats: float, most: int
    ) -> None:
        n = largest_n(nats, most)
        assert 1 <= n <= most
        assert best_of_n_bound(n) <= nats
        assert n == most or best_of_n_bound(n + 1) > nats

    @reproducible
    @given(COUNTS)
    def test_best_of_n_bound_increases_and_stays_below_log_n(self, n: int) -> None:
        assert best_of_n_bound(n) < best_of_n_bound(n + 1)
        assert 0 <= best_of_n_bound(n) <= math.log(n)

    @pytest.mark.parametrize("n", [0, -1])
    def test_best_of_n_bound_rejects_n_below_1(self, n: int) -> None:
        with pytest.raises(ValueError, match=f"got {n}"):
            best_of_n_bound(n)


class TestWinRate:
    @pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 64])
    def test_win_rate_bound_is_n_over_n_plus_1(self, n: int) -> None:
        assert win_rate_bound(n) == n / (n + 1)

    def test_win_rate_bound_rejects_n_below_1(self) -> None:
        with pytest.raises(ValueError, match="got 0"):
            win_rate_bound(0)


class TestEstimate:
    @pytest.mark.parametrize(
        ("logp", "nats"), [(-0.7, 0.699827134), (-5, 1.835044802), (-200, 1.835088722)]
    )
    def test_best_of_n_estimate_matches_published_values(self, logp: float, nats: float) -> None:
        assert best_of_n_estimate(logp, 16) == pytest.approx(nats, abs=1e-9)

    @pytest.mark.parametrize(
        ("n", "exact", "estimate", "bound"),
        [
            (1, 0, 0, 0),
            (2, 0.1308120359, 0.179099, 0.193147),
            (3, 0.3163770193, 0.370370, 0.431946),
            (4, 0.4593555219, 0.499124, 0.636294),
            (8, 0.6675877205, 0.672293, 1.204442),
            (64, 0.6931471806, 0.693147, 3.174508),
        ],
    )
    def test_estimate_for_two_equally_likely_responses_matches_published_values(
        self, n: int, exact: float, estimate: float, bound: float
    ) -> None:
        q = 2.0**-n  # probability of the worse response
        kl = math.log(2) + q * math.log(q) + (1 - q) * math.log1p(-q) if n > 1 else 0
        assert kl == pytest.approx(exact, abs=1e-10)
        assert best_of_n_estimate(math.log(0.5), n) == pytest.approx(estimate, abs=5e-7)
        assert best_of_n_bound(n) == pytest.approx(bound, abs=5e-7)

    @pytest.mark.parametrize(
        ("size", "n", "exact", "estimate"),
        [
            (10, 4, 0.628825, 0.634870),
            (10, 64, 2.293451, 2.294609),
            (100, 16, 1.834018, 1.834948),
        ],
    )
    def test_estimate_for_distinct_rewards_matches_published_values(
        self, size: int, n: int, exact: float, estimate: float
    ) -> None:
        probabilities = [((i + 1) / size) ** n - (i / size) ** n for i in range(size)]
        kl = sum(p * math.log(p * size) for p in probabilities if p > 0)
        assert kl == pytest.approx(exact, abs=5e-7)
        assert best_of_n_estimate(-math.log(size), n) == pytest.approx(estimate, abs=5e-7)

    @reproducible
    @given(LOGPROBS, COUNTS)
    def test_best_of_n_estimate_lies_between_zero_and_the_smaller_bound(
        self, logp: float, n: int
    ) -> None:
        estimate = best_of_n_estimate(logp, n)
        assert 0 <= estimate <= min(best_of_n_bound(n), -logp) + 1e-12

    @reproducible
    @given(LOGPROBS)
    def test_estimate_for_one_candidate_is_zero(self, logp: float) -> None:
        assert best_of_n_estimate(logp, 1) == 0

    @pytest.mark.parametrize("logp", [0.0, 1e-9, 2.0])
    def test_estimate_for_a_certain_response_is_zero(self, logp: float) -> None:
        assert best_of_n_estimate(logp, 8) == 0

    @pytest.mark.parametrize("logp", [-1e-15, -1e-16, -1e-17, -5e-324])
    def test_estimate_for_an_almost_certain_response_is_almost_zero(self, logp: float) -> None:
        assert best_of_n_estimate(logp, 8) == pytest.approx(0, abs=2e-15)

    @pytest.mark.parametrize("logp", [-700.0, -745.0, -1e6, -math.inf])
    def test_estimate_for_an_underflowing_probability_is_the_bound(self, logp: float) -> None:
        assert best_of_n_estimate(logp, 16) == best_of_n_bound(16)

    def test_best_of_n_estimate_rejects_n_below_1(self) -> None:
        with pytest.raises(ValueError, match="got 0"):
            best_of_n_estimate(-1.0, 0)


@pytest.mark.parametrize(
    ("nats", "expected"),
    [(0, "ok"), (7.999, "ok"), (8, "inspect"), (14.999, "inspect"), (15, "high"), (1e9, "high")],
)
def test_flag_changes_at_8_and_15_nats(nats: float, expected: str) -> None:
    assert flag(nats) == expected


@pytest.mark.parametrize(
    ("k", "tokens", "nats", "expected"),
    [
        (4, 256, 5.09, "ok"),
        (4, 512, 10.18, "inspect"),
        (4, 1024, 20.36, "high"),
        (8, 128, 4.82, "ok"),
        (8, 256, 9.64, "inspect"),
        (8, 512, 19.27, "high"),
    ],
)
def test_blocks_of_32_tokens_reach_the_expected_flag(
    k: int, tokens: int, nats: float, expected: str
) -> None:
    spent = tokens / 32 * best_of_n_bound(k)
    assert spent == pytest.approx(nats, abs=6e-3)
    assert flag(spent) == expected


class TestBestOfPoisson:
    @pytest.mark.parametrize(
        ("mu", "nats", "win"),
        [(1, 0.10715, 0.63212), (4, 0.67394, 0.81136), (16, 1.83714, 0.94141)],
    )
    def test_best_of_poisson_matches_published_values(
        self, mu: float, nats: float, win: float
    ) -> None:
        assert best_of_poisson_bound(mu) == pytest.approx(nats, abs=5e-6)
        assert _quadrature(lambda u: u * _density(u, mu)) == pytest.approx(win, abs=5e-6)

    @pytest.mark.parametrize("mu", [0.01, 0.3, 1, 4, 16, 100])
    def test_best_of_poisson_bound_equals_the_integral(self, mu: float) -> None:
        assert _quadrature(lambda u: _density(u, mu)) == pytest.approx(1, abs=1e-9)
        kl = _quadrature(lambda u: _density(u, mu) * math.log(_density(u, mu)))
        assert best_of_poisson_bound(mu) == pytest.approx(kl, abs=1e-9)

    @pytest.mark.parametrize("mu", [0.3, 4, 16])
    @pytest.mark.parametrize("logp", [-0.05, -0.7, -3, -8])
    def test_best_of_poisson_estimate_is_the_integral_below_plus_a_constant_above(
        self, mu: float, logp: float
    ) -> None:
        top = -math.expm1(logp)
        below = _quadrature(lambda u: _density(u, mu) * math.log(_density(u, mu)), top)
        hit = 1 - top * math.exp(mu * (top - 1))
        expected = below + hit * math.log(hit / (1 - top))
        assert best_of_poisson_estimate(logp, mu) == pytest.approx(expected, abs=1e-9)

    @reproducible
    @given(LOGPROBS, st.floats(0, 1000))
    def test_best_of_poisson_estimate_lies_between_zero_and_the_smaller_bound(
        self, logp: float, mu: float
    ) -> None:
        estimate = best_of_poisson_estimate(logp, mu)
        assert 0 <= estimate <= min(best_of_poisson_bound(mu), -logp) + 1e-12

    @pytest.mark.parametrize("mu", [0.0, 1e-300, 1e-12])
    def test_best_of_poisson_bound_vanishes_as_mu_does(self, mu: float) -> None:
        assert best_of_poisson_bound(mu) == pytest.approx(0, abs=1e-12)

    @reproducible
    @given(st.floats(0, 5000))
    def test_best_of_poisson_bound_increases_and_stays_below_log_of_the_mean(
        self, mu: float
    ) -> None:
        assert best_of_poisson_bound(mu) <= math.log1p(mu) + 1e-15
        assert best_of_poisson_bound(mu) <= best_of_poisson_bound(mu + 0.1) + 1e-12


def _density(u: float, mu: float) -> float:
    return (mu * u + 1) * math.exp(mu * (u - 1))


def _quadrature(of: Callable[[float], float], top: float = 1.0, panels: int = 20000) -> float:
    """Simpson's rule from 0 to ``top``."""
    h = top / panels
    inner = math.fsum((4 if i % 2 else 2) * of(i * h) for i in range(1, panels))
    return (of(0.0) + inner + of(top)) * h / 3
