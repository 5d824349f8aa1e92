"""Figures, tables and the page of the comparison."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from benchmarks.peers.driver import Setting
from benchmarks.peers.environments import THINKBOOSTER
from benchmarks.peers.rows import ROWS, Row

RESULTS = Path(__file__).parents[1] / "results"
PAGE = Path(__file__).with_name("page.md")

Runs = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""The runs of every round, by row name and concurrency."""


def summary(runs: Runs) -> dict[str, Any]:
    """The figures of every row, by concurrency."""
    return {
        row.name: {
            concurrency: _figures(rounds, runs[row.against][concurrency] if row.against else None)
            for concurrency, rounds in runs[row.name].items()
        }
        for row in ROWS
    }


def _figures(
    rounds: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    """Figures of a row: rates and ratios as median, minimum, maximum, rewards as mean ± 95 %."""
    rates = [len(run["latencies"]) / run["elapsed"] for run in rounds]
    latencies = [seconds for run in rounds for seconds in run["latencies"]]
    gold = [value for run in rounds for value in run["gold"]]
    figures: dict[str, Any] = {
        "answers": len(latencies),
        "requests_per_s": _spread(rates),
        "latency_p50": statistics.median(latencies),
        "latency_p90": statistics.quantiles(latencies, n=10)[-1],
        "decoded": sum(run["decoded"] for run in rounds) / len(latencies),
        "read": sum(run["read"] for run in rounds) / len(latencies),
        "decoded_per_s": _spread([run["decoded"] / run["elapsed"] for run in rounds]),
        "gold": _mean_ci(gold),
        "value": _mean_ci([value for run in rounds for value in run["value"]]),
    }
    if against is not None:
        pairs = list(zip(rounds, against, strict=True))
        theirs = [value for run in against for value in run["gold"]]
        figures["ratio"] = _spread([b["elapsed"] / a["elapsed"] for a, b in pairs])
        figures["gold_difference"] = _mean_ci([a - b for a, b in zip(gold, theirs, strict=True)])
    return figures


def _spread(values: Sequence[float]) -> list[float]:
    return [statistics.median(values), min(values), max(values)]


def _mean_ci(values: Sequence[float]) -> list[float]:
    return [statistics.mean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))]


def markdown(results: Mapping[str, Any]) -> str:
    """A table per concurrency, and the rows that have not been measured."""
    measured = results["rows"]
    tables = [_table(results, concurrency) for concurrency in measured[ROWS[0].name]]
    setting = {"beam_width": Setting().beam_width, **results["setting"]}
    missing = [row.shown.format(**setting) for row in ROWS if row.name not in measured]
    if missing:
        tables.append(f"Not measured yet: {'; '.join(missing)}.")
    return "\n\n".join(tables)


def _table(results: Mapping[str, Any], concurrency: str) -> str:
    head = (
        "| | selected or guided by | requests/s | relative to cdserve | latency p50, p90, s "
        "| reward | tokens decoded | tokens read |"
    )
    lines = [
        _line(row, results["rows"][row.name][concurrency], results["setting"])
        for row in ROWS
        if concurrency in results["rows"].get(row.name, {})
    ]
    title = "One request at a time" if concurrency == "1" else f"{concurrency} concurrent requests"
    return "\n".join([f"{title}:", "", head, "|---|---|---|---|---|---|---|---|", *lines])


def _line(row: Row, figures: Mapping[str, Any], setting: Mapping[str, Any]) -> str:
    rate, low, high = figures["requests_per_s"]
    ratio = "{:.2f} ({:.2f}-{:.2f})".format(*figures["ratio"]) if row.against else ""
    reward, ci = figures["gold"]
    return (
        f"| {row.shown.format(**setting)} | {row.scorer.format(**setting)} "
        f"| {rate:.2f} ({low:.2f}-{high:.2f}) | {ratio} "
        f"| {figures['latency_p50']:.2f}, {figures['latency_p90']:.2f} "
        f"| {reward:+.2f} ± {ci:.2f} | {figures['decoded']:.0f} | {figures['read']:.0f} |"
    )


def ahead(results: Mapping[str, Any]) -> list[str]:
    """A sentence per figure in which a peer is ahead of cdserve beyond the measured spread."""
    sentences = []
    for row in ROWS:
        if row.against is None:
            continue
        for concurrency, figures in results["rows"].get(row.name, {}).items():
            where = f"{row.shown.format(**results['setting'])}, concurrency {concurrency}"
            ratio, low, high = figures["ratio"]
            if low > 1:
                sentences.append(
                    f"{where}: {ratio:.2f} times the requests/s ({low:.2f}-{high:.2f})."
                )
            more, ci = figures["gold_difference"]
            if more > ci:
                sentences.append(f"{where}: a reward higher by {more:.2f} ± {ci:.2f}.")
    return sentences


def page(results: Mapping[str, Any], equal_reward: Mapping[str, str]) -> str:
    """The page, from the figures of all rows and of the benchmark at equal reward.

    Args:
        equal_reward: command, machine and tables of that benchmark.
    """
    versions, setting = results["versions"], results["setting"]
    ratings = results["optillm_ratings"]
    sentences = ahead(results) or ["None."]
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        {"beam_width": Setting().beam_width, **setting},
        command=results["command"],
        machine=results["machine"],
        transformers=versions["transformers"],
        openai=versions["openai"],
        its_hub=versions["its_hub"]["its_hub"],
        optillm=versions["optillm"]["optillm"],
        thinkbooster=THINKBOOSTER.alone[0].partition("==")[2],
        asked=ratings["asked"],
        numbers=ratings["numbers"],
        table=markdown(results),
        ahead="\n".join(f"- {sentence}" for sentence in sentences),
        **{f"equal_{name}": text for name, text in equal_reward.items()},
        **_costs(results),
    )


def _costs(results: Mapping[str, Any]) -> dict[str, str]:
    """Milliseconds per decoded token with one request at a time, of the server and of the loop."""
    names = {
        "plain_ms": "vLLM",
        "steered_ms": "cdserve tokenwise_cd",
        "loop_ms": "Transformers token-wise by Q",
    }
    rates = {key: results["rows"][name]["1"]["decoded_per_s"][0] for key, name in names.items()}
    return {key: f"{1000 / rate:.1f}" for key, rate in rates.items()}
