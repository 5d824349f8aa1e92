"""Plots of an evaluation: reward and win-rate against KL, tokens drawn and latency."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from cdserve.evaluation.job import BASE
from cdserve.evaluation.results import Results
from cdserve.evaluation.statistics import Interval
from cdserve.evaluation.summary import Figures, Gain

_STYLE: Any = {"svg.hashsalt": "cdserve", "svg.fonttype": "none", "font.size": 9}
_KL = "KL from the base (nats per response): estimate; thin line to the bound"
_BEST_OF_N = "best-of-n in theory, at KL log n − (n − 1)/n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plot with a panel for the scoring reward and, if any, one for the held-out reward.

    Attributes:
        file: file name in the evaluation's folder.
        x: x of a policy; None omits the policy.
        y: y of a policy's reward, with its interval.
        base: draws the reference lines and curves.
        with_base: whether to plot the base as a point.
        over_kl: whether ``x`` is the KL estimate, on a √KL axis; else the axis is logarithmic.
    """

    file: str
    title: str
    x: Callable[[Figures], float | None]
    x_label: str
    y: Callable[[Gain], Interval]
    y_label: str
    base: Callable[[Axes, Results, str], None]
    with_base: bool = True
    over_kl: bool = False


def draw(results: Results, folder: Path) -> None:
    """Draws all plots as SVG files; the same results give the same bytes."""
    with mpl.rc_context(_STYLE):
        for plot in PLOTS:
            _figure(plot, results).savefig(
                folder / plot.file, format="svg", metadata={"Date": None}
            )


def _figure(plot: Plot, results: Results) -> Figure:
    panels = ["reward"] if results.alarms is None else ["reward", "gold"]
    figure = Figure(figsize=(6.0 * len(panels), 4.8), layout="constrained")
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        plot.base(axes, results, panel)
        for index, (name, points) in enumerate(_lines(results).items()):
            color = "black" if name == BASE else f"C{index - 1}"
            if plot.with_base or name != BASE:
                _draw_line(axes, plot, results, panel, (name, points), color)
        _scale(axes, plot)
        axes.set_xlabel(plot.x_label)
        name = results.settings[panel].rpartition(":")[2]
        axes.set_ylabel(f"{plot.y_label} {name}{' (held out)' if panel == 'gold' else ''}")
        axes.grid(alpha=0.3)
    handles = _handles(figure.axes)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=2, fontsize=8
    )
    return figure


def _scale(axes: Axes, plot: Plot) -> None:
    if plot.over_kl:
        axes.set_xscale("function", functions=(_root, np.square))
        axes.set_xlim(left=0)
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _lines(results: Results) -> dict[str, Sequence[str]]:
    """The policies of each line: the points of a sweep, or a single policy; the base first."""
    single = {name: [name] for name in results.policies if name not in results.points}
    return single | dict(results.sweeps)


def _handles(all_axes: Sequence[Axes]) -> dict[str, Artist]:
    """The legend entries of all panels, each label once."""
    handles: dict[str, Artist] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    return handles


def _draw_line(
    axes: Axes,
    plot: Plot,
    results: Results,
    panel: str,
    line: tuple[str, Sequence[str]],
    color: str,
) -> None:
    label, names = line
    points = [
        (name, figures, x, plot.y(_gain(figures, panel)))
        for name in names
        if (x := plot.x(figures := results.policies[name])) is not None
    ]
    if not points:
        return
    xs = [x for _, _, x, _ in points]
    ys = [y.mean for *_, y in points]
    axes.errorbar(
        xs,
        ys,
        yerr=np.transpose([_error_bar(y) for *_, y in points]),
        color=color,
        marker="o",
        markersize=4,
        capsize=2,
        linewidth=1.2,
        elinewidth=0.8,
        label=label,
        clip_on=False,
    )
    for name, figures, x, y in points:
        if plot.over_kl and figures.kl is not None:
            bound = figures.kl.bound.mean
            axes.plot([x, bound], [y.mean] * 2, color=color, linewidth=0.6, alpha=0.6)
        if plot.x is _p99_wait and figures.latency.inter_p99 is None:
            axes.plot(x, y.mean, "o", color=color, ms=4, mfc="white", zorder=3)
        if name in results.points:
            axes.annotate(
                results.points[name],
                (x, y.mean),
                (4, 4),
                textcoords="offset points",
                fontsize=6,
            )


def _error_bar(interval: Interval) -> tuple[float, float]:
    """Lengths below and above the mean."""
    if interval.low is None or interval.high is None:
        return 0.0, 0.0
    return max(0.0, interval.mean - interval.low), max(0.0, interval.high - interval.mean)


def _draw_base(axes: Axes, results: Results, panel: str) -> None:
    mean = _gain(results.policies[BASE], panel).mean.mean
    axes.axhline(mean, color="0.6", linestyle=":")


def _draw_best_win_rate(axes: Axes, results: Results, panel: str) -> None:
    axes.axhline(0.5, color="0.6", linestyle=":")
    nats = [point.kl for point in results.best_of_n]
    rates = [point.win_rate for point in results.best_of_n]
    axes.plot(nats, rates, color="0.4", linestyle="--", label=_BEST_OF_N)


def _draw_best_reward(axes: Axes, results: Results, panel: str) -> None:
    _draw_base(axes, results, panel)
    if panel == "gold":
        _draw_fits(axes, results)
        return
    points = [(point.kl, point.reward) for point in results.best_of_n if point.reward is not None]
    if len(points) > 1:
        axes.plot(*zip(*points, strict=True), color="0.4", linestyle="--", label=_BEST_OF_N)


def _draw_fits(axes: Axes, results: Results) -> None:
    base = _gain(results.policies[BASE], "gold").mean.mean
    for sweep, fit in results.fits.items():
        d = np.linspace(0.0, math.sqrt(fit.measured), 60)
        gains = d * (fit.a - fit.b * d)
        axes.plot(d**2, base + gains, color="0.4", linestyle="-.", label=f"fit of {sweep}")


def _gain(figures: Figures, panel: str) -> Gain:
    gain = figures.gold if panel == "gold" else figures.reward
    assert gain is not None
    return gain


def _root(nats: NDArray[np.float64]) -> NDArray[np.float64]:
    root: NDArray[np.float64] = np.sqrt(np.maximum(nats, 0.0))
    return root


def _estimate(figures: Figures) -> float | None:
    return None if figures.kl is None else figures.kl.estimate.mean


def _candidate_tokens(figures: Figures) -> float | None:
    return figures.candidate_tokens


def _answer_seconds(figures: Figures) -> float | None:
    return figures.latency.answer_p50


def _p99_wait(figures: Figures) -> float | None:
    """p99 of the time between blocks, or to the only block."""
    latency = figures.latency
    return latency.first_p99 if latency.inter_p99 is None else latency.inter_p99


def _win_rate(gain: Gain) -> Interval:
    return gain.win_rate


def _reward(gain: Gain) -> Interval:
    return gain.mean


PLOTS = (
    Plot(
        file="win_rate_kl.svg",
        title="Win-rate against KL",
        x=_estimate,
        x_label=_KL,
        y=_win_rate,
        y_label="win-rate by",
        base=_draw_best_win_rate,
        with_base=False,
        over_kl=True,
    ),
    Plot(
        file="reward_kl.svg",
        title="Reward against KL",
        x=_estimate,
        x_label=_KL,
        y=_reward,
        y_label="reward",
        base=_draw_best_reward,
        over_kl=True,
    ),
    Plot(
        file="reward_candidate_tokens.svg",
        title="Reward against candidate tokens",
        x=_candidate_tokens,
        x_label="tokens drawn per token returned",
        y=_reward,
        y_label="reward",
        base=_draw_base,
    ),
    Plot(
        file="reward_seconds.svg",
        title="Reward against seconds per answer",
        x=_answer_seconds,
        x_label="median time to the end of an answer (s)",
        y=_reward,
        y_label="reward",
        base=_draw_base,
    ),
    Plot(
        file="reward_latency.svg",
        title="Reward against p99 inter-block latency",
        x=_p99_wait,
        x_label="p99 inter-block latency (s); open markers: p99 time to the only block",
        y=_reward,
        y_label="reward",
        base=_draw_base,
    ),
)
"""The plots of every evaluation."""
