"""The plot of a head's report."""

from pathlib import Path

import pytest
from matplotlib import image

from cdserve.training.plot import draw, draw_pairs
from value_heads import PairAccuracy, PairReport
from value_heads.metrics import Bin
from value_heads.report import Bucket, HeadReport, PairsAt, RewardReport


def of_reward(accuracy: float | None) -> RewardReport:
    return RewardReport(
        reward_mean=0.1,
        reward_sd=1.0,
        half_squared_error=0.2,
        baseline=0.5,
        loss=0.2,
        baseline_loss=0.5,
        by_number=(
            Bucket(low=1, high=8, tokens=70, correlation=0.3),
            Bucket(low=8, high=16, tokens=40, correlation=None),
            Bucket(low=16, high=32, tokens=20, correlation=0.8),
        ),
        by_fraction=(),
        at_end=0.9,
        pairs_by_number=(PairsAt(number=8, responses=8, accuracy=accuracy),),
        pairs_at_end=accuracy,
        selected=None,
        calibration=(Bin(-1.0, -0.8, 65), Bin(1.0, 1.1, 65)),
        calibration_gap=0.1,
        bellman_bias=None,
        bellman_rms=None,
    )


def report(**rewards: RewardReport) -> HeadReport:
    return HeadReport(
        beta=None,
        responses=10,
        cut=0,
        tokens=130,
        pairs="any two",
        residual=None,
        rewards=rewards,
    )


@pytest.mark.parametrize("losses", [[(1.0, 1.1), (0.5, 0.6), (0.4, 0.7)], [(1.0, 1.1)], []])
def test_plot_draws_all_four_panels(losses: list[tuple[float, float]], tmp_path: Path) -> None:
    path = tmp_path / "report.png"
    draw(report(helpful=of_reward(0.7), harmless=of_reward(None)), losses, path)
    pixels = image.imread(path)
    assert min(pixels.shape[:2]) > 500
    half, middle = pixels.shape[0] // 2, pixels.shape[1] // 2
    for panel in (
        pixels[:half, :middle],
        pixels[:half, middle:],
        pixels[half:, :middle],
        pixels[half:, middle:],
    ):
        assert panel.std() > 0.01


def test_equal_reports_give_identical_plots(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        draw(report(r=of_reward(0.7)), [(1.0, 1.1), (0.5, 0.6)], tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_plot_of_pairs_draws_both_panels(tmp_path: Path) -> None:
    by_number = tuple(PairAccuracy(number=1 << i, pairs=9, accuracy=0.6) for i in range(4))
    pairs = PairReport(pairs=9, prefixes=90, loss=0.5, by_number=by_number, at_end=0.8)
    draw_pairs(pairs, [(0.7, 0.7), (0.5, 0.6)], tmp_path / "report.png")
    pixels = image.imread(tmp_path / "report.png")
    middle = pixels.shape[1] // 2
    assert all(panel.std() > 0.01 for panel in (pixels[:, :middle], pixels[:, middle:]))
