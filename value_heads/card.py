"""The part of a head's model card that says how well it predicts."""

from collections.abc import Sequence

from .frontier import Frontier, FrontierPoint
from .metrics import Selected
from .report import Bucket, HeadReport, RewardReport


def markdown(report: HeadReport) -> str:
    """Return the report as a section of a model card: a paragraph and small tables."""
    rewards = report.rewards
    first = next(iter(rewards.values()))
    numbers = [f"{bucket.low:g}-{bucket.high - 1:g}" for bucket in first.by_number]
    fractions = [f"{bucket.low:.1f}-{bucket.high:.1f}" for bucket in first.by_fraction]
    prefixes = [str(at.number) for at in first.pairs_by_number]
    correlations = {name: _shares(made.by_number, made.at_end) for name, made in rewards.items()}
    by_fraction = {name: _shares(made.by_fraction) for name, made in rewards.items()}
    pairs = {name: _pairs(made) for name, made in rewards.items()}
    of_each = [_figures(report, made) for made in rewards.values()]
    figures = {name: [figure[name] for figure in of_each] for name in of_each[0]}
    return "\n".join(
        [
            "## Held-out responses\n",
            f"Measured on {report.responses} responses of {report.tokens} tokens to prompts that "
            f"the head was not fitted to{_cut(report)}.\n",
            _table("", list(rewards), figures),
            f"{_residual(report)}Correlation of value and reward:\n",
            _table("token of the response", [*numbers, "end"], correlations),
            _table("part of the response", fractions, by_fraction),
            f"Pairs of responses, {_of_pairs(report)}, whose values have the order of their "
            "rewards:\n",
            _table("tokens read", [*prefixes, "all"], pairs),
            *_selection(rewards),
            *_frontier(report.frontier),
        ]
    )


def _figures(report: HeadReport, made: RewardReport) -> dict[str, str]:
    figures = {
        "reward, mean": _number(made.reward_mean),
        "reward, standard deviation": _number(made.reward_sd),
        "half squared error": _number(made.half_squared_error),
        "the same of the best constant": _number(made.baseline),
    }
    if report.beta is not None:
        figures[f"LINEX loss, β = {report.beta:g}"] = _number(made.loss)
        figures["LINEX loss of the best constant"] = _number(made.baseline_loss)
    figures["calibration gap, root mean square"] = _number(made.calibration_gap)
    if report.residual is not None:
        figures["Bellman residual, bias"] = _number(made.bellman_bias)
        figures["Bellman residual, root mean square"] = _number(made.bellman_rms)
    return figures


def _cut(report: HeadReport) -> str:
    return f"; {report.cut} more were cut, so they have no reward" if report.cut else ""


def _residual(report: HeadReport) -> str:
    if report.residual != "sampled":
        return ""
    return (
        "The Bellman residual is that of sampled tokens: its root mean square holds their variance "
        "too.\n\n"
    )


def _of_pairs(report: HeadReport) -> str:
    return "both to the same prompt" if report.pairs == "same prompt" else "to any two prompts"


def _selection(rewards: dict[str, RewardReport]) -> list[str]:
    """A table, or nothing where no prompt has several responses."""
    made = {name: one.selected for name, one in rewards.items()}
    rows = {
        name: [str(one.prompts), f"{one.responses:.3g}", *map(_number, _rewards(one))]
        for name, one in made.items()
        if one is not None
    }
    if not rows:
        return []
    columns = ["prompts", "responses of each", "any of them", "highest value", "best of them"]
    return ["Mean reward of the response that the value selects:\n", _table("", columns, rows)]


def _rewards(found: Selected) -> tuple[float, float, float]:
    return found.chance, found.chosen, found.best


def _frontier(found: Frontier | None) -> list[str]:
    """A table for each pair of rewards."""
    if found is None:
        return []
    by_pair: dict[tuple[str, ...], list[FrontierPoint]] = {}
    for point in found.points:
        by_pair.setdefault(tuple(point.shares), []).append(point)
    said = (
        "Mean rewards of the response that a weighted sum of two values selects, of "
        f"{found.responses:.3g} responses to each of {found.prompts} prompts. A weight is of "
        "values as they are, a share of values over their reward's standard deviation:\n"
    )
    return [said, *(_weighed(pair, points, found) for pair, points in by_pair.items())]


def _weighed(pair: tuple[str, ...], points: Sequence[FrontierPoint], found: Frontier) -> str:
    rows = {"any of them": ["–"] * len(pair) + [_number(mean) for mean in found.chance.values()]}
    for point in points:
        name = " + ".join(f"{share:g} {reward}" for reward, share in point.shares.items() if share)
        numbers = [*point.weights.values(), *point.earned.values()]
        rows[name] = [_number(number) for number in numbers]
    columns = [f"weight of {reward}" for reward in pair] + [
        f"{name} earned" for name in found.chance
    ]
    return _table("shares", columns, rows)


def _pairs(made: RewardReport) -> list[str]:
    return [_share(at.accuracy) for at in made.pairs_by_number] + [_share(made.pairs_at_end)]


def _shares(buckets: Sequence[Bucket], *more: float | None) -> list[str]:
    return [_share(bucket.correlation) for bucket in buckets] + [_share(one) for one in more]


def _table(corner: str, columns: Sequence[str], rows: dict[str, list[str]]) -> str:
    lines = [[corner, *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *cells] for name, cells in rows.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _share(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}"


def _number(number: float | None) -> str:
    return "–" if number is None else f"{number:.4g}"
