"""The figures of the runs, the table, and the page that it stands on."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from benchmarks.peers.rows import ROWS, Row

PAGE = Path(__file__).with_name("page.md")

Runs = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""A row's runs, one a round, by name of the row and concurrency."""


def summary(runs: Runs) -> dict[str, Any]:
    """Every row's figures, by concurrency."""
    return {
        row.name: {
            concurrency: _figures(found, runs[row.against][concurrency] if row.against else None)
            for concurrency, found in runs[row.name].items()
        }
        for row in ROWS
    }


def _figures(
    found: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    """One row's; rates and ratios as median, lowest and highest round, rewards as mean ± 95 %."""
    rates = [len(run["latencies"]) / run["elapsed"] for run in found]
    latencies = [seconds for run in found for seconds in run["latencies"]]
    gold = [value for run in found for value in run["gold"]]
    made: dict[str, Any] = {
        "answers": len(latencies),
        "requests_per_s": _spread(rates),
        "latency_p50": statistics.median(latencies),
        "latency_p90": statistics.quantiles(latencies, n=10)[-1],
        "decoded": sum(run["decoded"] for run in found) / len(latencies),
        "read": sum(run["read"] for run in found) / len(latencies),
        "decoded_per_s": _spread([run["decoded"] / run["elapsed"] for run in found]),
        "gold": _mean_ci(gold),
        "value": _mean_ci([value for run in found for value in run["value"]]),
    }
    if against is not None:
        pairs = list(zip(found, against, strict=True))
        theirs = [value for run in against for value in run["gold"]]
        made["ratio"] = _spread([b["elapsed"] / a["elapsed"] for a, b in pairs])
        made["gold_difference"] = _mean_ci([a - b for a, b in zip(gold, theirs, strict=True)])
    return made


def _spread(values: Sequence[float]) -> list[float]:
    return [statistics.median(values), min(values), max(values)]


def _mean_ci(values: Sequence[float]) -> list[float]:
    return [statistics.mean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))]


def markdown(made: Mapping[str, Any]) -> str:
    """A table for each concurrency."""
    concurrencies = made["rows"][ROWS[0].name]
    return "\n\n".join(_table(made, concurrency) for concurrency in concurrencies)


def _table(made: Mapping[str, Any], concurrency: str) -> str:
    head = (
        "| | selected or guided by | requests/s | to cdserve's | latency p50, p90, s | reward "
        "| tokens decoded | tokens read |"
    )
    lines = [
        _line(row, made["rows"][row.name][concurrency], made["setting"])
        for row in ROWS
        if concurrency in made["rows"][row.name]
    ]
    at_once = "One request at a time" if concurrency == "1" else f"{concurrency} at once"
    return "\n".join([f"{at_once}:", "", head, "|---|---|---|---|---|---|---|---|", *lines])


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


def ahead(made: Mapping[str, Any]) -> list[str]:
    """Sentences on each peer that is ahead of cdserve beyond the spread of the measurement."""
    found = []
    for row in ROWS:
        for concurrency, figures in made["rows"][row.name].items():
            if row.against is None:
                continue
            where = f"{row.shown.format(**made['setting'])}, {concurrency} at once"
            ratio, low, high = figures["ratio"]
            if low > 1:
                found.append(f"{where}: {ratio:.2f} times the requests/s ({low:.2f}-{high:.2f}).")
            more, ci = figures["gold_difference"]
            if more > ci:
                found.append(f"{where}: a reward higher by {more:.2f} ± {ci:.2f}.")
    return found


def write(made: Mapping[str, Any], output: Path | None, page: Path | None) -> None:
    """The figures as JSON, and the page."""
    if output:
        output.write_text(json.dumps(made, indent=2) + "\n")
    if page:
        page.write_text(_page(made), encoding="utf-8")


def _page(made: Mapping[str, Any]) -> str:
    versions, setting = made["versions"], made["setting"]
    ratings = made["optillm_ratings"]
    sentences = ahead(made) or ["None, in any round or beyond the intervals."]
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        setting,
        command=made["command"],
        machine=made["machine"],
        transformers=versions["transformers"],
        openai=versions["openai"],
        its_hub=versions["its_hub"]["its_hub"],
        optillm=versions["optillm"]["optillm"],
        asked=ratings["asked"],
        numbers=ratings["numbers"],
        table=markdown(made),
        ahead="\n".join(f"- {sentence}" for sentence in sentences),
        **_costs(made),
    )


def _costs(made: Mapping[str, Any]) -> dict[str, str]:
    """Milliseconds a decoded token, one request at a time, of the server and of the loop."""
    names = {
        "plain_ms": "vLLM",
        "steered_ms": "cdserve tokenwise_cd",
        "loop_ms": "Transformers token-wise by Q",
    }
    rates = {key: made["rows"][name]["1"]["decoded_per_s"][0] for key, name in names.items()}
    return {key: f"{1000 / rate:.1f}" for key, rate in rates.items()}
