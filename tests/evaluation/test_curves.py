"""Best-of-n's curves from one pool against all its subsets, and the fit of over-optimisation."""

import math
import statistics
from itertools import combinations
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdserve import kl
from cdserve.evaluation.curves import best_of_n_mean, over_optimisation

SCORES = [0.1, 0.4, 0.35, 0.8, 0.6]
GOLD = [3, 1, 2, 0, 5]
reproducible = settings(derandomize=True, deadline=None, max_examples=200)
pools = st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), min_size=1, max_size=7)


def plain(scores: list[int], values: list[int], n: int) -> float:
    """The mean over all subsets, a tie shared."""

    def chosen(subset: tuple[int, ...]) -> float:
        top = max(scores[i] for i in subset)
        level = [values[i] for i, score in enumerate(scores) if score == top]
        return statistics.fmean(level)

    return statistics.fmean(map(chosen, combinations(range(len(scores)), n)))


@pytest.mark.parametrize(("n", "gold"), [(1, 2.2), (2, 1.9), (3, 1.6), (5, 0.0)])
def test_published_pool(n: int, gold: float) -> None:
    """METHODS 6.8: the proxy rises and the gold reward falls."""
    assert best_of_n_mean(SCORES, GOLD, n) == pytest.approx(gold, abs=1e-9)
    assert best_of_n_mean(SCORES, SCORES, n) >= best_of_n_mean(SCORES, SCORES, 1) - 1e-12


@reproducible
@given(pools, st.data())
def test_it_is_the_mean_over_all_subsets(pool: list[tuple[int, int]], data: st.DataObject) -> None:
    scores, values = [list(column) for column in zip(*pool, strict=True)]
    n = data.draw(st.integers(1, len(pool)))
    assert best_of_n_mean(scores, values, n) == pytest.approx(plain(scores, values, n), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "mean"), [(2, 0.5642), (4, 1.0294), (8, 1.4236), (16, 1.7660), (32, 2.0696), (64, 2.3436)]
)
def test_normal_rewards(n: int, mean: float) -> None:
    """METHODS 6.8: E max of n standard normals, from a pool of their quantiles."""
    pool = [NormalDist().inv_cdf((i + 0.5) / 20000) for i in range(20000)]
    assert best_of_n_mean(pool, pool, n) == pytest.approx(mean, abs=2e-3)


@pytest.mark.parametrize(
    ("scores", "values", "n", "said"),
    [
        ([1.0], [1.0], 0, "from 1 to the pool's 1, got 0"),
        ([1.0], [1.0], 2, "from 1 to the pool's 1, got 2"),
        ([1.0, 2.0], [1.0], 1, "of one length"),
        ([1.0, math.nan], [1.0, 2.0], 1, "finite"),
    ],
)
def test_refused(scores: list[float], values: list[float], n: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        best_of_n_mean(scores, values, n)


@pytest.mark.parametrize(("form", "peak"), [("best_of_n", 6.25), ("rl", math.exp(1.0))])
def test_a_curve_is_found_again(form: str, peak: float) -> None:
    a, b = (2.0, 0.4) if form == "best_of_n" else (1.5, 1.0)
    nats = [0.2, 0.7, 1.2, 2.5, 5.9]
    root = [math.sqrt(one) for one in nats]
    gains = [d * (a - b * (d if form == "best_of_n" else math.log(d))) for d in root]
    fit = over_optimisation(nats, gains, form)  # type: ignore[arg-type]
    assert (fit.a, fit.b) == pytest.approx((a, b), abs=1e-9)
    assert fit.peak == pytest.approx(peak, rel=1e-9)
    assert [fit.gain(one) for one in nats] == pytest.approx(gains, abs=1e-9)
    assert fit.gain(0.0) == 0
    assert all(fit.gain(peak * factor) < fit.gain(peak) for factor in (0.9, 1.1))
    assert kl.effective_n(fit.peak) == fit.recommended_n


def test_a_reward_that_only_rises_has_no_peak() -> None:
    fit = over_optimisation([1.0, 4.0], [1.0, 3.0])
    assert fit.b < 0
    assert fit.peak == fit.recommended_n == math.inf


def test_a_reward_that_only_falls_peaks_at_the_base() -> None:
    fit = over_optimisation([1.0, 4.0], [-1.0, -3.0])
    assert (fit.peak, fit.recommended_n) == (0.0, 1.0)


def test_two_points_are_needed() -> None:
    with pytest.raises(ValueError, match="two different KL"):
        over_optimisation([0.0, 1.0, 1.0], [0.0, 1.0, 1.0])
