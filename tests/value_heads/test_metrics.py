"""Correlation, pair accuracy and calibration."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from value_heads import correlation, correlation_by_bucket, metrics
from value_heads.metrics import Bin, calibration, pair_accuracy

Row = tuple[int, int, int]
ROWS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-2, 2), st.integers(0, 3)), max_size=30)


def columns(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Values, rewards, groups."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2].long()


def brute_force(rows: list[Row]) -> float | None:
    shares = []
    for (v, r, group), (w, s, other) in combinations(rows, 2):
        if group == other and r != s:
            shares.append(0.5 if v == w else float((v > w) == (r > s)))
    return sum(shares) / len(shares) if shares else None


class TestPairAccuracy:
    def test_pair_accuracy_matches_values_worked_out_by_hand(self) -> None:
        """Of (0,1) (0,2) (1,2) in group 0: right, tied, and wrong; the rewards of group 1 agree."""
        values = torch.tensor([1.0, 2.0, 1.0, 5.0, 6.0])
        rewards = torch.tensor([0.0, 1.0, 2.0, 3.0, 3.0])
        groups = torch.tensor([0, 0, 0, 1, 1])
        assert pair_accuracy(values, rewards, groups) == (1 + 0.5 + 0) / 3

    def test_pair_accuracy_is_none_without_a_pair(self) -> None:
        ramp = torch.arange(3.0)
        assert pair_accuracy(ramp, torch.ones(3), torch.zeros(3).long()) is None
        assert pair_accuracy(ramp, ramp, torch.arange(3)) is None
        assert pair_accuracy(ramp[:0], ramp[:0], torch.zeros(0).long()) is None

    @given(ROWS)
    def test_pair_accuracy_equals_a_plain_loop(self, rows: list[Row]) -> None:
        assert pair_accuracy(*columns(rows)) == brute_force(rows)

    @given(ROWS)
    def test_pair_accuracy_in_chunks_is_the_same(self, rows: list[Row]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(metrics, "_PAIRS", 3 * max(1, len(rows)))
            assert pair_accuracy(*columns(rows)) == brute_force(rows)

    @given(ROWS)
    def test_pair_accuracy_depends_only_on_order(self, rows: list[Row]) -> None:
        values, rewards, groups = columns(rows)
        found = pair_accuracy(values, rewards, groups)
        assert pair_accuracy(values.exp() - 7, 2 * rewards + 1, groups) == found

    @given(ROWS)
    def test_pair_accuracy_of_negated_values_is_the_complement(self, rows: list[Row]) -> None:
        values, rewards, groups = columns(rows)
        found = pair_accuracy(values, rewards, groups)
        if found is not None:
            assert pair_accuracy(-values, rewards, groups) == pytest.approx(1 - found)

    def test_pair_accuracy_rejects_mismatched_shapes(self) -> None:
        with pytest.raises(ValueError, match=r"\[3\], \[2\] and \[3\]"):
            pair_accuracy(torch.zeros(3), torch.zeros(2), torch.zeros(3).long())
        with pytest.raises(ValueError, match=r"\[3, 1\]"):
            pair_accuracy(torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3, 1).long())


class TestCalibration:
    def test_calibration_matches_values_worked_out_by_hand(self) -> None:
        values = torch.tensor([3.0, 1.0, 2.0, 0.0])
        rewards = torch.tensor([1.0, 5.0, 2.0, 4.0])
        assert calibration(values, rewards, 2) == [Bin(0.5, 4.5, 2), Bin(2.5, 1.5, 2)]

    def test_calibration_puts_equal_values_in_one_bin(self) -> None:
        values, rewards = torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 1.0, 2.0])
        assert calibration(values, rewards, 2) == [Bin(0.0, 0.0, 1), Bin(1.0, 1.0, 3)]
        assert calibration(torch.ones(4), rewards) == [Bin(1.0, 0.75, 4)]

    def test_calibration_of_nothing_has_no_bins(self) -> None:
        assert calibration(torch.zeros(0), torch.zeros(0)) == []

    @given(st.integers(1, 60), st.integers(1, 12))
    def test_calibration_bins_have_equal_counts_without_ties(self, count: int, bins: int) -> None:
        ramp = torch.arange(float(count))
        counts = [found.count for found in calibration(ramp, ramp, bins)]
        assert len(counts) == min(count, bins)
        assert sum(counts) == count
        assert max(counts) - min(counts) <= 1

    @given(ROWS, st.integers(1, 12))
    def test_calibration_bins_hold_all_values_in_order(self, rows: list[Row], bins: int) -> None:
        values, rewards, _ = columns(rows)
        found = calibration(values, rewards, bins)
        means = [one.value for one in found]
        assert len(found) <= bins
        assert means == sorted(set(means))
        assert math.fsum(one.count * one.value for one in found) == pytest.approx(
            float(values.sum())
        )
        assert math.fsum(one.count * one.reward for one in found) == pytest.approx(
            float(rewards.sum())
        )

    def test_calibration_rejects_mismatched_shapes_and_zero_bins(self) -> None:
        with pytest.raises(ValueError, match=r"\[3\] and \[2\]"):
            calibration(torch.zeros(3), torch.zeros(2))
        with pytest.raises(ValueError, match="at least 1, got 0"):
            calibration(torch.zeros(3), torch.zeros(3), 0)


def test_correlation_matches_values_worked_out_by_hand() -> None:
    ramp = torch.arange(10.0)
    assert correlation(ramp, 3 * ramp - 1) == pytest.approx(1)
    assert correlation(ramp, -ramp) == pytest.approx(-1)
    assert math.isnan(correlation(ramp, torch.ones(10)))
    with pytest.raises(ValueError, match="same length"):
        correlation(ramp, ramp[1:])
    places = ramp / 10
    signs = torch.where(places < 0.5, 1.0, -1.0)
    assert correlation_by_bucket(ramp, signs * ramp, places, (0.0, 0.5, 1.0)) == [
        pytest.approx(1),
        pytest.approx(-1),
    ]
    assert correlation_by_bucket(ramp, ramp, places, (2.0, 3.0)) == [None]
