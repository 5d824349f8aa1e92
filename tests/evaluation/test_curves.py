"""Best-of-n's curves from one pool against all its subsets."""

import math
import statistics
from itertools import combinations
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdserve.evaluation.curves import best_of_n_mean

SCORES = [0.1, 0.4, 0.35, 0.8, 0.6]
GOLD = [3, 1, 2, 0, 5]
reproducible = settings(derandomize=True, deadline=None, max_examples=200)
pools = st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), min_size=1, max_size=7)


def plain(scores: list[int], values: list[int], n: int) -> float:
    """The mean over all subsets; tied draws share their mean."""

    def chosen(subset: tuple[int, ...]) -> float:
        top = max(scores[i] for i in subset)
        level = [values[i] for i, score in enumerate(scores) if score == top]
        return statistics.fmean(level)

    return statistics.fmean(map(chosen, combinations(range(len(scores)), n)))


@pytest.mark.parametrize(("n", "gold"), [(1, 2.2), (2, 1.9), (3, 1.6), (5, 0.0)])
def test_best_of_n_mean_equals_worked_values_of_a_pool(n: int, gold: float) -> None:
    """METHODS 6.8: the proxy rises and the gold reward falls."""
    assert best_of_n_mean(SCORES, GOLD, n) == pytest.approx(gold, abs=1e-9)
    assert best_of_n_mean(SCORES, SCORES, n) >= best_of_n_mean(SCORES, SCORES, 1) - 1e-12


@reproducible
@given(pools, st.data())
def test_best_of_n_mean_equals_the_mean_over_all_subsets(
    pool: list[tuple[int, int]], data: st.DataObject
) -> None:
    scores, values = [list(column) for column in zip(*pool, strict=True)]
    n = data.draw(st.integers(1, len(pool)))
    assert best_of_n_mean(scores, values, n) == pytest.approx(plain(scores, values, n), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "mean"), [(2, 0.5642), (4, 1.0294), (8, 1.4236), (16, 1.7660), (32, 2.0696), (64, 2.3436)]
)
def test_best_of_n_mean_of_normal_scores_equals_known_values(n: int, mean: float) -> None:
    """METHODS 6.8: E max of n standard normals, from a pool of their quantiles."""
    pool = [NormalDist().inv_cdf((i + 0.5) / 20000) for i in range(20000)]
    assert best_of_n_mean(pool, pool, n) == pytest.approx(mean, abs=2e-3)


@pytest.mark.parametrize(
    ("scores", "values", "n", "message"),
    [
        ([1.0], [1.0], 0, "from 1 to the pool's 1, got 0"),
        ([1.0], [1.0], 2, "from 1 to the pool's 1, got 2"),
        ([1.0, 2.0], [1.0], 1, "the same shape"),
        ([1.0, math.nan], [1.0, 2.0], 1, "finite"),
    ],
)
def test_best_of_n_mean_refuses_invalid_arguments(
    scores: list[float], values: list[float], n: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        best_of_n_mean(scores, values, n)
