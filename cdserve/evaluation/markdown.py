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
    """The report: tables, what is to be said of over-optimisation, the plots, the command."""
    sections = [
        _head(results),
        _quality(results),
        _cost(results),
        _text(results),
        _over_optimisation(results),
        _positions(results),
        "## Plots\n\n" + "\n\n".join(f"![{plot.title}]({plot.file})" for plot in PLOTS),
        _how(results),
    ]
    return "\n\n".join(sections) + "\n"


def _head(results: Results) -> str:
    settings = results.settings
    held_out = "" if settings["gold"] is None else f", held-out reward `{settings['gold']}`"
    draws = "" if results.draws == 1 else f", {results.draws} answers to each"
    return (
        f"# Evaluation of `{settings['model']}`\n\n"
        f"{results.prompts} prompts{draws}; scoring reward `{settings['reward']}`{held_out}. "
        "Intervals are of 95 %, over prompts. Win-rates are against the base's answers to the same "
        "prompts, a tie as half a win."
    )


def _quality(results: Results) -> str:
    gold = results.settings["gold"] is not None
    titles = ["policy", "reward", "win-rate"]
    titles += ["held-out reward", "win-rate by it"] if gold else []
    titles += ["KL estimate, nats", "KL bound", "flag"]
    return "## Rewards and KL\n\n" + _table(titles, map(_quality_row, *_items(results)))


def _quality_row(name: str, figures: Figures) -> list[str]:
    found = figures.kl
    return [
        name,
        *_gain(figures.reward, name),
        *([] if figures.gold is None else _gain(figures.gold, name)),
        *(
            [_NONE] * 3
            if found is None
            else [_mean(found.estimate, 2), _mean(found.bound, 2), found.flag]
        ),
    ]


def _gain(gain: Gain, name: str) -> list[str]:
    rate = gain.win_rate
    shown = f"{rate.mean:.2f} [{rate.low:.2f}, {rate.high:.2f}]"
    return [_mean(gain.mean, 3), _NONE if name == BASE else shown]


def _cost(results: Results) -> str:
    titles = [
        *("policy", "tokens drawn a token", "first block p50, s", "p99", "between blocks p50, s"),
        *("p99", "tokens/s of an answer", "of all answers"),
    ]
    words = (
        f"Times are a client's, {results.settings['concurrency']} answers at once. An answer that "
        "is one block has no time between blocks."
    )
    return f"## Cost\n\n{_table(titles, map(_cost_row, *_items(results)))}\n\n{words}"


def _cost_row(name: str, figures: Figures) -> list[str]:
    latency = figures.latency
    return [
        name,
        _number(figures.candidate_tokens, 2),
        _number(latency.first_p50, 3),
        _number(latency.first_p99, 3),
        _number(latency.inter_p50, 3),
        _number(latency.inter_p99, 3),
        _number(latency.tokens_per_second, 1),
        _number(latency.throughput, 1),
    ]


def _text(results: Results) -> str:
    titles = [
        *("policy", "tokens", "cut", "distinct-1", "distinct-2", "distinct-3", "tie rate"),
        "reward-length correlation",
    ]
    gold = results.settings["gold"] is not None
    titles += ["held-out reward-length"] if gold else []
    return "## Length, diversity, ties\n\n" + _table(
        titles,
        (
            [
                name,
                _mean(figures.tokens, 1),
                f"{100 * figures.cut:.0f} %",
                *(_number(share, 3) for share in figures.distinct),
                _number(figures.tie_rate, 3),
                _number(figures.reward_length, 2),
                *([_number(figures.gold_length, 2)] if gold else []),
            ]
            for name, figures in results.policies.items()
        ),
    )


def _over_optimisation(results: Results) -> str:
    if results.alarms is None:
        said = ["Not looked for: it takes a held-out reward (`--gold`)."]
    elif not results.alarms:
        said = [
            "No alarm: no policy has a higher scoring reward and a lower held-out one than the "
            "base, or than a point of its sweep that is nearer to the base, beyond the intervals."
        ]
    else:
        said = [_alarm(alarm) for alarm in results.alarms]
    said += [_fit(sweep, fit) for sweep, fit in results.fits.items()]
    return "## Over-optimisation\n\n" + "\n".join(f"- {one}" for one in said)


def _alarm(alarm: Alarm) -> str:
    return (
        f"**Alarm:** `{alarm.policy}` against `{alarm.against}`: scoring reward "
        f"{_signed(alarm.reward)}, held-out reward {_signed(alarm.gold)} "
        f"(intervals of {100 * alarm.level:.4g} %)."
    )


def _fit(sweep: str, fit: Fit) -> str:
    curve = f"`{sweep}`: held-out gain ≈ √KL ({fit.a:.3g} − {fit.b:.3g} √KL)"
    if fit.peak is None:
        return f"{curve}, which does not fall; measured up to {fit.measured:.2f} nats."
    best = _NONE if fit.recommended_n is None else f"{fit.recommended_n:.3g}"
    beyond = " This is beyond what was measured." if fit.peak > fit.measured else ""
    return (
        f"{curve}, at its highest at {fit.peak:.3g} nats, n = {best}; measured up to "
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
        return f"{title}Not known: no policy has a trace."
    spans = sorted({(b.low, b.high) for made in traced.values() for b in made.by_position or ()})
    rows = []
    for name, made in traced.items():
        found = {(b.low, b.high): b for b in made.by_position or ()}
        shown = [
            f"{100 * found[s].estimate:.2f} ({100 * found[s].bound:.2f})" if s in found else _NONE
            for s in spans
        ]
        rows.append([f"{name} *" if made.even else name, *shown])
    table = _table(["policy", *(f"{low} to {high - 1}" for low, high in spans)], rows)
    words = (
        "Estimate (bound) in hundredths of a nat a token, over answers that have a token there. "
        "The KL of a decision is spread evenly over the tokens it took; of policies marked with *, "
        "steering is known of the whole response only, and spread evenly over it."
    )
    missing = [name for name in results.policies if name not in traced and name != BASE]
    without = f" Without a trace: {', '.join(missing)}." if missing else ""
    return f"{title}{table}\n\n{words}{without}"


def _how(results: Results) -> str:
    settings = {k: v for k, v in results.settings.items() if k != "policies"}
    definitions = {name: results.settings["policies"][name] for name in results.policies}
    lines = [f"- {key}: {json.dumps(value)}" for key, value in settings.items()]
    lines += [f"- `{name}`: `{json.dumps(sent)}`" for name, sent in definitions.items()]
    listed = "\n".join(lines)
    return f"## How it was made\n\n```sh\n{results.command}\n```\n\n{listed}"


def _items(results: Results) -> tuple[Sequence[str], Sequence[Figures]]:
    return list(results.policies), list(results.policies.values())


def _table(titles: Sequence[str], rows: "Iterator[list[str]] | Sequence[list[str]]") -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _mean(found: Interval, digits: int) -> str:
    if found.high is None:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} ± {found.high - found.mean:.{digits}f}"


def _signed(found: Interval) -> str:
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _number(found: float | None, digits: int) -> str:
    return _NONE if found is None else f"{found:.{digits}f}"
