"""The report of an evaluation as Markdown."""

import json
from collections.abc import Iterator, Sequence

from cdserve.evaluation.job import BASE
from cdserve.evaluation.overoptimisation import Alarm, Fit
from cdserve.evaluation.plots import PLOTS
from cdserve.evaluation.results import Results
from cdserve.evaluation.statistics import Interval
from cdserve.evaluation.summary import Figures, Gain

_NONE = "–"


def markdown(results: Results) -> str:
    """The report: tables, over-optimisation, plots and the command."""
    sections = [
        _header(results),
        _quality(results),
        _cost(results),
        _text(results),
        _over_optimisation(results),
        _positions(results),
        "## Plots\n\n" + "\n\n".join(f"![{plot.title}]({plot.file})" for plot in PLOTS),
        _settings(results),
    ]
    return "\n\n".join(sections) + "\n"


def tables(results: Results) -> str:
    """The tables of rewards, KL and cost."""
    return f"{_quality(results)}\n\n{_cost(results)}"


def _header(results: Results) -> str:
    settings = results.settings
    held_out = "" if settings["gold"] is None else f", held-out reward `{settings['gold']}`"
    draws = "" if results.draws == 1 else f", {results.draws} answers each"
    return (
        f"# Evaluation of `{settings['model']}`\n\n"
        f"{results.prompts} prompts{draws}; scoring reward `{settings['reward']}`{held_out}. "
        "Intervals are 95 % confidence intervals over prompts. Win-rates compare answers with the "
        "base's answers to the same prompts; a tie counts as half a win."
    )


def _quality(results: Results) -> str:
    gold = results.settings["gold"] is not None
    titles = ["policy", "reward", "win-rate"]
    titles += ["held-out reward", "held-out win-rate"] if gold else []
    titles += ["KL estimate, nats", "KL bound, nats", "flag"]
    return "## Rewards and KL\n\n" + _table(titles, map(_quality_row, *_items(results)))


def _quality_row(name: str, figures: Figures) -> list[str]:
    kl = figures.kl
    return [
        name,
        *_gain(figures.reward, name),
        *([] if figures.gold is None else _gain(figures.gold, name)),
        *([_NONE] * 3 if kl is None else [_mean(kl.estimate, 2), _mean(kl.bound, 2), kl.flag]),
    ]


def _gain(gain: Gain, name: str) -> list[str]:
    rate = gain.win_rate
    win_rate = f"{rate.mean:.2f} [{rate.low:.2f}, {rate.high:.2f}]"
    return [_mean(gain.mean, 3), _NONE if name == BASE else win_rate]


def _cost(results: Results) -> str:
    draws = any(figures.draws is not None for figures in results.policies.values())
    titles = [
        *("policy", "tokens drawn per token returned"),
        *(("draws", "saved tokens") if draws else ()),
        *("answer p50, s", "answer p99, s", "first block p50, s", "first block p99, s"),
        *("inter-block p50, s", "inter-block p99, s", "tokens/s per answer", "tokens/s in total"),
    ]
    rows = (_cost_row(name, figures, draws) for name, figures in results.policies.items())
    note = (
        f"Times are measured by the client with {results.settings['concurrency']} concurrent "
        "requests. Answers of one block have no inter-block time."
    )
    if draws:
        note += " Draws and saved tokens are means per answer, from the reports that have them."
    return f"## Cost\n\n{_table(titles, rows)}\n\n{note}"


def _cost_row(name: str, figures: Figures, draws: bool) -> list[str]:
    latency = figures.latency
    return [
        name,
        _number(figures.candidate_tokens, 2),
        *([_number(figures.draws, 1), _number(figures.saved_tokens, 0)] if draws else []),
        _number(latency.answer_p50, 3),
        _number(latency.answer_p99, 3),
        _number(latency.first_p50, 3),
        _number(latency.first_p99, 3),
        _number(latency.inter_p50, 3),
        _number(latency.inter_p99, 3),
        _number(latency.tokens_per_second, 1),
        _number(latency.throughput, 1),
    ]


def _text(results: Results) -> str:
    titles = [
        *("policy", "tokens", "truncated", "distinct-1", "distinct-2", "distinct-3", "tie rate"),
        *("ended candidates", "ended selected", "reward–length correlation"),
    ]
    gold = results.settings["gold"] is not None
    titles += ["held-out reward–length correlation"] if gold else []
    return "## Length, diversity, ties\n\n" + _table(
        titles,
        (
            [
                name,
                _mean(figures.tokens, 1),
                f"{100 * figures.cut:.0f} %",
                *(_number(share, 3) for share in figures.distinct),
                _number(figures.tie_rate, 3),
                _number(figures.ended_candidates, 2),
                _number(figures.ended_selected, 2),
                _number(figures.reward_length, 2),
                *([_number(figures.gold_length, 2)] if gold else []),
            ]
            for name, figures in results.policies.items()
        ),
    )


def _over_optimisation(results: Results) -> str:
    if results.alarms is None:
        lines = ["Not checked: this requires a held-out reward (`--gold`)."]
    elif not results.alarms:
        lines = [
            "No alarm: no policy has a significantly higher scoring reward and a significantly "
            "lower held-out reward than the base, or than a point of its sweep with a lower KL."
        ]
    else:
        lines = [_alarm(alarm) for alarm in results.alarms]
    lines += [_fit(sweep, fit) for sweep, fit in results.fits.items()]
    return "## Over-optimisation\n\n" + "\n".join(f"- {line}" for line in lines)


def _alarm(alarm: Alarm) -> str:
    return (
        f"**Alarm:** `{alarm.policy}` against `{alarm.against}`: scoring reward "
        f"{_signed(alarm.reward)}, held-out reward {_signed(alarm.gold)} "
        f"({100 * alarm.level:.4g} % intervals)."
    )


def _fit(sweep: str, fit: Fit) -> str:
    curve = f"`{sweep}`: held-out gain ≈ √KL ({fit.a:.3g} − {fit.b:.3g} √KL)"
    if fit.peak is None:
        return f"{curve}, which has no maximum; measured up to {fit.measured:.2f} nats."
    best = _NONE if fit.recommended_n is None else f"{fit.recommended_n:.3g}"
    beyond = " The maximum is extrapolated." if fit.peak > fit.measured else ""
    return (
        f"{curve}, with its maximum at {fit.peak:.3g} nats, n = {best}; measured up to "
        f"{fit.measured:.2f} nats.{beyond}"
    )


def _positions(results: Results) -> str:
    traced = {
        name: figures.kl
        for name, figures in results.policies.items()
        if figures.kl is not None and figures.kl.by_position is not None
    }
    title = "## KL by token position\n\n"
    if not traced:
        return f"{title}Not available: no policy has a trace."
    spans = sorted({(b.low, b.high) for kl in traced.values() for b in kl.by_position or ()})
    rows = []
    for name, kl in traced.items():
        buckets = {(b.low, b.high): b for b in kl.by_position or ()}
        cells = [
            f"{100 * buckets[span].estimate:.2f} ({100 * buckets[span].bound:.2f})"
            if span in buckets
            else _NONE
            for span in spans
        ]
        rows.append([f"{name} *" if kl.even else name, *cells])
    table = _table(["policy", *(f"{low} to {high - 1}" for low, high in spans)], rows)
    note = (
        "Estimate (bound) in hundredths of a nat per token, over the answers that reach the "
        "position. The KL of a decision is spread evenly over its chosen tokens. For policies "
        "marked with *, the KL of token-level steering is known per response only and spread "
        "evenly over its tokens."
    )
    missing = [name for name in results.policies if name not in traced and name != BASE]
    without = f" Without a trace: {', '.join(missing)}." if missing else ""
    return f"{title}{table}\n\n{note}{without}"


def _settings(results: Results) -> str:
    settings = {k: v for k, v in results.settings.items() if k != "policies"}
    definitions = {name: results.settings["policies"][name] for name in results.policies}
    lines = [f"- {key}: {json.dumps(value)}" for key, value in settings.items()]
    lines += [f"- `{name}`: `{json.dumps(policy)}`" for name, policy in definitions.items()]
    listed = "\n".join(lines)
    return f"## Command and settings\n\n```sh\n{results.command}\n```\n\n{listed}"


def _items(results: Results) -> tuple[Sequence[str], Sequence[Figures]]:
    return list(results.policies), list(results.policies.values())


def _table(titles: Sequence[str], rows: "Iterator[list[str]] | Sequence[list[str]]") -> str:
    """A table whose columns are aligned in the source too, for a terminal."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = (map(str.ljust, line, widths) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _mean(interval: Interval, digits: int) -> str:
    if interval.high is None:
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f} ± {interval.high - interval.mean:.{digits}f}"


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _number(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"
