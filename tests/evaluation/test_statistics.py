"""Intervals, percentiles, diversity and correlation against closed forms and tables."""

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdserve.evaluation.statistics import (
    Interval,
    correlation,
    difference,
    distinct,
    mean_interval,
    percentile,
    student_t,
    wilson,
)

reproducible = settings(derandomize=True, deadline=None, max_examples=200)
numbers = st.floats(-1e6, 1e6, allow_nan=False)


class TestStudent:
    @pytest.mark.parametrize(
        ("level", "dof", "table"),
        [
            *[(0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 3, 3.182), (0.95, 4, 2.776)],
            *[(0.95, 10, 2.228), (0.95, 29, 2.045), (0.95, 120, 1.980), (0.99, 5, 4.032)],
            *[(0.99, 30, 2.750), (0.5, 1, 1.0), (0.999, 8, 5.041)],
        ],
    )
    def test_student_t_equals_table_values(self, level: float, dof: int, table: float) -> None:
        assert student_t(level, dof) == pytest.approx(table, abs=6e-4)

    def test_student_t_approaches_the_normal_quantile(self) -> None:
        assert student_t(0.95, 20000) == pytest.approx(1.959964, abs=2e-4)

    @pytest.mark.parametrize(("level", "dof"), [(0.95, 0), (0.0, 3), (1.0, 3)])
    def test_student_t_refuses_invalid_level_or_dof(self, level: float, dof: int) -> None:
        with pytest.raises(ValueError, match="level must be between 0 and 1 and dof at least 1"):
            student_t(level, dof)


class TestMean:
    def test_mean_interval_equals_hand_computed_bounds(self) -> None:
        interval = mean_interval([1.0, 2.0, 3.0])
        half = 4.302653 / math.sqrt(3)  # the standard deviation is 1
        assert interval.mean == 2.0
        assert interval.low == pytest.approx(2.0 - half, abs=1e-5)
        assert interval.high == pytest.approx(2.0 + half, abs=1e-5)

    def test_mean_of_one_value_has_no_bounds(self) -> None:
        interval = mean_interval([3.0])
        assert interval == Interval(3.0, None, None)
        assert not interval.positive
        assert not interval.negative

    def test_mean_of_no_values_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="needs at least one value"):
            mean_interval([])

    def test_difference_is_paired(self) -> None:
        base = [0.0, 10.0, -5.0, 3.0]
        interval = difference([x + 1.0 for x in base], base)
        assert interval == Interval(1.0, 1.0, 1.0)
        assert interval.positive

    @reproducible
    @given(st.lists(numbers, min_size=2, max_size=20), numbers)
    def test_mean_interval_shifts_with_the_values(self, values: list[float], shift: float) -> None:
        one, other = mean_interval(values), mean_interval([x + shift for x in values])
        assert other.low == pytest.approx(one.low + shift, abs=1e-3)


class TestWilson:
    @pytest.mark.parametrize(
        ("successes", "total", "low", "high"),
        [
            (0, 10, 0.0, 0.277533),  # z² / (n + z²)
            (10, 10, 0.722467, 1.0),
            (5, 10, 0.236593, 0.763407),
            (81, 263, 0.255286, 0.366205),  # Newcombe 1998, table I: 0.2553 to 0.3662
            (1, 29, 0.006113, 0.171755),  # the same: 0.0061 to 0.1718
        ],
    )
    def test_wilson_equals_published_values(
        self, successes: int, total: int, low: float, high: float
    ) -> None:
        interval = wilson(successes, total)
        assert interval.mean == successes / total
        assert interval.low == pytest.approx(low, abs=2e-5)
        assert interval.high == pytest.approx(high, abs=2e-5)

    @reproducible
    @given(st.integers(1, 1000), st.floats(0, 1))
    def test_wilson_bounds_solve_the_score_equation(self, total: int, share: float) -> None:
        interval = wilson(share * total, total)
        assert 0 <= interval.low <= interval.mean + 1e-9
        assert interval.mean - 1e-9 <= interval.high <= 1
        z = statistics.NormalDist().inv_cdf(0.975)
        for end in (interval.low, interval.high):
            if 0 < end < 1:
                score = (interval.mean - end) ** 2
                assert score == pytest.approx(z * z * end * (1 - end) / total, abs=1e-9)

    @reproducible
    @given(st.integers(1, 500), st.floats(0, 1))
    def test_wilson_of_wins_mirrors_losses(self, total: int, share: float) -> None:
        wins, losses = wilson(share * total, total), wilson(total - share * total, total)
        assert wins.low == pytest.approx(1 - losses.high, abs=1e-9)

    @pytest.mark.parametrize(("successes", "total"), [(-1, 3), (4, 3), (0, 0)])
    def test_wilson_refuses_invalid_counts(self, successes: int, total: int) -> None:
        with pytest.raises(ValueError, match="successes must be from 0"):
            wilson(successes, total)


class TestPercentile:
    def test_percentile_equals_hand_computed_values(self) -> None:
        values = [4.0, 1.0, 3.0, 2.0, 5.0]
        assert percentile(values, 50) == 3.0
        assert percentile(values, 0) == 1.0
        assert percentile(values, 99) == pytest.approx(4.96)
        assert percentile([7.0], 99) == 7.0

    @reproducible
    @given(st.lists(numbers, min_size=1, max_size=30), st.floats(0, 100))
    def test_percentile_is_within_the_values(self, values: list[float], percent: float) -> None:
        assert min(values) - 1e-6 <= percentile(values, percent) <= max(values) + 1e-6


class TestDistinct:
    def test_distinct_equals_hand_computed_shares(self) -> None:
        texts = ["The cat sat", "the  cat\nran away"]
        assert distinct(texts, 1) == 5 / 7
        assert distinct(texts, 2) == 4 / 5
        assert distinct(texts, 3) == 1.0

    @pytest.mark.parametrize("texts", [[], [""], ["one", " two "]])
    def test_distinct_is_none_without_n_grams(self, texts: list[str]) -> None:
        assert distinct(texts, 2) is None

    def test_distinct_of_repeated_texts_is_low(self) -> None:
        assert distinct(["a b"] * 50, 1) == 2 / 100


class TestCorrelation:
    def test_correlation_equals_hand_computed_values(self) -> None:
        assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
        assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
        assert correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)

    @pytest.mark.parametrize("y", [[1.0, 1.0, 1.0], []])
    def test_correlation_of_a_constant_is_none(self, y: list[float]) -> None:
        assert correlation([1.0, 2.0, 3.0][: len(y)], y) is None

    @settings(reproducible, max_examples=40)
    @given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=8))
    def test_correlation_equals_the_standard_library(
        self, pairs: list[tuple[float, float]]
    ) -> None:
        x, y = ([pair[i] for pair in pairs] for i in (0, 1))
        value = correlation(x, y)
        if value is not None:
            assert -1 <= value <= 1
        if value is not None and min(statistics.stdev(x), statistics.stdev(y)) > 1e-3:
            assert value == pytest.approx(statistics.correlation(x, y), abs=1e-6)
