"""Draws the report of a head."""

from collections.abc import Sequence
from math import nan
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from value_heads import HeadReport, PairReport


def draw(report: HeadReport, losses: Sequence[tuple[float, float]], path: Path) -> None:
    """Draws loss by epoch, correlation and pair accuracy by token number, and calibration.

    Args:
        report: report on the test set; one line per reward.
        losses: losses of the training set and the validation set, by epoch.
        path: path of the PNG.
    """
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    (loss, correlation), (pairs, calibration) = figure.subplots(2, 2)
    _draw_loss(loss, losses)
    _draw_correlation(correlation, report)
    _draw_pairs(pairs, report)
    _draw_calibration(calibration, report)
    _finish(figure, path)


def draw_pairs(report: PairReport, losses: Sequence[tuple[float, float]], path: Path) -> None:
    """Draws loss by epoch, and pair accuracy by token number.

    Args:
        report: report on the pairs of the test set.
        losses: losses of the training set and the validation set, by epoch.
        path: path of the PNG.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, pairs = figure.subplots(1, 2)
    _draw_loss(loss, losses)
    labels = [str(at.number) for at in report.by_number]
    accuracies = [at.accuracy for at in report.by_number]
    _draw_by_number(pairs, "C0", "held-out pairs", labels, accuracies, report.at_end)
    pairs.axhline(0.5, color="0.6", linestyle=":", label="chance")
    pairs.set_ylabel("pair accuracy")
    _finish(figure, path)


def _finish(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})


def _draw_loss(axes: Axes, losses: Sequence[tuple[float, float]]) -> None:
    epochs = range(1, len(losses) + 1)
    axes.plot(epochs, [train for train, _ in losses], marker=".", label="training")
    axes.plot(epochs, [held_out for _, held_out in losses], marker=".", label="validation")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_correlation(axes: Axes, report: HeadReport) -> None:
    for index, (name, figures) in enumerate(report.rewards.items()):
        labels = [f"{bucket.low:g}-{bucket.high - 1:g}" for bucket in figures.by_number]
        correlations = [bucket.correlation for bucket in figures.by_number]
        _draw_by_number(axes, f"C{index}", name, labels, correlations, figures.at_end)
    axes.set_ylabel("correlation of value and reward")


def _draw_pairs(axes: Axes, report: HeadReport) -> None:
    for index, (name, figures) in enumerate(report.rewards.items()):
        labels = [str(at.number) for at in figures.pairs_by_number]
        accuracies = [at.accuracy for at in figures.pairs_by_number]
        _draw_by_number(axes, f"C{index}", name, labels, accuracies, figures.pairs_at_end)
    axes.axhline(0.5, color="0.6", linestyle=":", label="chance")
    axes.set_ylabel(f"pair accuracy ({report.pairs})")


def _draw_by_number(
    axes: Axes,
    color: str,
    name: str,
    labels: Sequence[str],
    values: Sequence[float | None],
    at_end: float | None,
) -> None:
    heights = [nan if value is None else value for value in (*values, at_end)]
    axes.plot(range(len(values)), heights[:-1], marker=".", color=color, label=name)
    axes.plot(len(values), heights[-1], marker="*", markersize=10, color=color)
    axes.set_xticks(range(len(heights)), [*labels, "end"])
    axes.set_xlabel("token position in the response")


def _draw_calibration(axes: Axes, report: HeadReport) -> None:
    for index, (name, figures) in enumerate(report.rewards.items()):
        values = [bin_.value for bin_ in figures.calibration]
        rewards = [bin_.reward for bin_ in figures.calibration]
        axes.plot(values, rewards, marker="o", markersize=4, color=f"C{index}", label=name)
    middle = next(iter(report.rewards.values())).reward_mean
    axes.axline((middle, middle), slope=1, color="0.6", linestyle=":", label="value = reward")
    axes.set_xlabel("mean value")
    axes.set_ylabel("mean reward")
