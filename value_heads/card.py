"""The section of a head's model card on the quality of its predictions."""

import math
from collections.abc import Sequence

from .frontier import Frontier, FrontierPoint
from .metrics import Selected
from .pair_report import PairReport
from .report import GAIN_SIZES, Bucket, HeadReport, RewardReport


def markdown(report: HeadReport) -> str:
    """Return the report as a section of a model card: a paragraph and small tables."""
    rewards = report.rewards
    first = next(iter(rewards.values()))
    numbers = [f"{bucket.low:g}-{bucket.high - 1:g}" for bucket in first.by_number]
    fractions = [f"{bucket.low:.1f}-{bucket.high:.1f}" for bucket in first.by_fraction]
    prefixes = [str(at.number) for at in first.pairs_by_number]
    correlations = {
        name: _shares(reward.by_number, reward.at_end) for name, reward in rewards.items()
    }
    by_fraction = {name: _shares(reward.by_fraction) for name, reward in rewards.items()}
    pairs = {name: _pairs(reward) for name, reward in rewards.items()}
    of_each = [_figures(report, reward) for reward in rewards.values()]
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
            *_remaining(rewards),
            *_selection(rewards),
            *_frontier(report.frontier),
        ]
    )


def pair_markdown(report: PairReport) -> str:
    """Return the report on pairs as a section of a model card."""
    columns = [str(at.number) for at in report.by_number]
    rows = {
        "accuracy": [*(_share(at.accuracy) for at in report.by_number), _share(report.at_end)],
        "pairs": [*(str(at.pairs) for at in report.by_number), str(report.pairs)],
    }
    return "\n".join(
        [
            "## Held-out pairs\n",
            f"Measured on {report.pairs} pairs of responses, {report.prefixes} pairs of prefixes, "
            "to prompts that the head was not fitted to. The Bradley-Terry loss is "
            f"{_number(report.loss)} nats; that of a constant is {_number(math.log(2))}.\n",
            "Share of pairs in which the chosen prefix has the higher value:\n",
            _table("tokens read", [*columns, "all"], rows),
        ]
    )


def _figures(report: HeadReport, reward: RewardReport) -> dict[str, str]:
    figures = {
        "reward, mean": _number(reward.reward_mean),
        "reward, standard deviation": _number(reward.reward_sd),
        "half squared error": _number(reward.half_squared_error),
        "the same of the best constant": _number(reward.baseline),
    }
    if report.beta is not None:
        figures[f"LINEX loss, β = {report.beta:g}"] = _number(reward.loss)
        figures["LINEX loss of the best constant"] = _number(reward.baseline_loss)
    figures["calibration gap, root mean square"] = _number(reward.calibration_gap)
    if report.residual is not None:
        figures["Bellman residual, bias"] = _number(reward.bellman_bias)
        figures["Bellman residual, root mean square"] = _number(reward.bellman_rms)
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


def _remaining(rewards: dict[str, RewardReport]) -> list[str]:
    """Return a paragraph and a table for each reward, or nothing without a prefix."""
    tables = []
    for name, report in rewards.items():
        rests = report.remaining
        columns = [f"{rest.low}-{rest.high - 1}" for rest in rests]
        rows = {
            "tokens to come, mean": [f"{rest.tokens:.1f}" for rest in rests],
            "reward - value, standard deviation": [_number(rest.deviation) for rest in rests],
            "later change of the value, standard deviation": [
                _number(rest.change) for rest in rests
            ],
            **{
                f"gain of the best of {n}": [_number(rest.gains[i]) for rest in rests]
                for i, n in enumerate(GAIN_SIZES)
                if n in (1, 4, 16)
            },
        }
        if rests:
            tables.append(_table(f"tokens read, {name}", columns, rows))
    introduction = (
        "Rest of the response after an unfinished prefix. Gains are the mean of reward - value of "
        "the prefix with the highest later change of its value, out of n of the highest sixteenth:"
        "\n"
    )
    return [introduction, *tables] if tables else []


def _selection(rewards: dict[str, RewardReport]) -> list[str]:
    """Return a table, or nothing if no prompt has several responses."""
    rows = {
        name: [str(best.prompts), f"{best.responses:.3g}", *map(_number, _rewards(best))]
        for name, report in rewards.items()
        if (best := report.selected) is not None
    }
    if not rows:
        return []
    columns = ["prompts", "responses of each", "any of them", "highest value", "best of them"]
    return ["Mean reward of the response that the value selects:\n", _table("", columns, rows)]


def _rewards(selected: Selected) -> tuple[float, float, float]:
    return selected.chance, selected.chosen, selected.best


def _frontier(frontier: Frontier | None) -> list[str]:
    """Return a paragraph, and a table for each pair of rewards."""
    if frontier is None:
        return []
    by_pair: dict[tuple[str, ...], list[FrontierPoint]] = {}
    for point in frontier.points:
        by_pair.setdefault(tuple(point.shares), []).append(point)
    introduction = (
        "Mean rewards of the response that a weighted sum of two values selects, out of "
        f"{frontier.responses:.3g} responses to each of {frontier.prompts} prompts. Weights apply "
        "to values as they are, shares to values over their reward's standard deviation:\n"
    )
    return [
        introduction,
        *(_weighed(pair, points, frontier) for pair, points in by_pair.items()),
    ]


def _weighed(pair: tuple[str, ...], points: Sequence[FrontierPoint], frontier: Frontier) -> str:
    rows = {"any of them": ["–"] * len(pair) + [_number(mean) for mean in frontier.chance.values()]}
    for point in points:
        name = " + ".join(f"{share:g} {reward}" for reward, share in point.shares.items() if share)
        numbers = [*point.weights.values(), *point.earned.values()]
        rows[name] = [_number(number) for number in numbers]
    columns = [f"weight of {reward}" for reward in pair] + [
        f"{name} earned" for name in frontier.chance
    ]
    return _table("shares", columns, rows)


def _pairs(reward: RewardReport) -> list[str]:
    return [_share(at.accuracy) for at in reward.pairs_by_number] + [_share(reward.pairs_at_end)]


def _shares(buckets: Sequence[Bucket], *more: float | None) -> list[str]:
    return [_share(bucket.correlation) for bucket in buckets] + [_share(number) for number in more]


def _table(corner: str, columns: Sequence[str], rows: dict[str, list[str]]) -> str:
    lines = [[corner, *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *cells] for name, cells in rows.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _share(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}"


def _number(number: float | None) -> str:
    return "–" if number is None else f"{number:.4g}"
