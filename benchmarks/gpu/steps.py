"""Part 6: what values, tilts and mixtures add to a step of the engine, in milliseconds.

The arms run in turn on one server, in an order that rotates; each round's overhead is against the
plain arm of the same round. Times are taken in the worker, so the API server and HTTP have no part
in them. A step is one that draws one token for each of the rows and nothing else.

- ``ms``: from the start of a step to that of the next, the median.
- ``host ms``: within the worker's calls.
- ``device ms``: on the GPU, from its first work to its last.
- ``last``: host and device of the last such step, in which all rows of ``values`` are scored.
"""

import asyncio
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from models import model

from .served import Setup, posted, probe, serving

ROWS = {"cpu": [1, 4], "cuda": [1, 64, 256, 1024]}
MODELS = {"cpu": "demo", "cuda": "100m"}
TOKENS = {"cpu": 8, "cuda": 32}
ROUNDS = {"cpu": 1, "cuda": 3}
FLAGS = {
    "cpu": ["--max-num-seqs", "16"],
    "cuda": [
        *("--max-num-seqs", "1024", "--dtype", "bfloat16"),
        *("--kv-cache-memory-bytes", str(8 << 30)),
    ],
}
_ADMITTED = ["--set", "admission.max_running=1024"]
_AT_ONCE = 64
"""Answers of one request at most."""
_LEAST = 4
"""Steps of all rows that a median is taken of."""
WEIGHTS = {"base": 0.4, "tuned": 0.3, "ref": 0.3}


def arms(count: int) -> dict[str, dict[str, Any]]:
    """Requests of so many rows each."""
    tilt = {"method": "tokenwise_cd", "beta": 0.1}
    mix = {"method": "logit_mixing", "weights": WEIGHTS}
    return {
        "plain": {"n": count},
        "values": {"alignment": {"method": "best_of_n", "n": count}},
        "tilt": {"n": count, "alignment": tilt},
        "mix": {"n": count, "alignment": mix},
    }


def check(setup: Setup) -> dict[str, Any]:
    """A row for each number of rows."""
    device = setup.device
    with serving(setup, model(MODELS[device]).config(), *FLAGS[device], *_ADMITTED) as url:
        engine = probe(url, "probe_engine")
        table = []
        for rows in ROWS[device]:
            table.append({"rows": rows, **measured(url, rows, TOKENS[device], ROUNDS[device])})
            print(f"steps: {table[-1]}", file=sys.stderr, flush=True)
    return {"ok": True, "model": MODELS[device], "engine": engine, "overhead": table}


def measured(url: str, rows: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Medians over the rounds, after one that warms up."""
    names = list(arms(1))
    found: list[dict[str, dict[str, float]]] = []
    for i in range(rounds + 1):
        order = [*names[i % len(names) :], *names[: i % len(names)]]
        made = {name: times(recorded(url, name, rows, tokens), rows) for name in order}
        if i:
            found.append(made)
    return {
        "plain": medians([made["plain"] for made in found]),
        **{
            f"{name} over plain": medians([over(made[name], made["plain"]) for made in found])
            for name in names
            if name != "plain"
        },
    }


def recorded(url: str, arm: str, rows: int, tokens: int) -> list[dict[str, float]]:
    """The engine's steps while it answers one arm's requests, which begin together."""
    count = min(rows, _AT_ONCE)
    fields = {"max_tokens": tokens, "ignore_eos": True, **arms(count)[arm]}
    bodies = [
        {"prompt": [100 + (i * 37 + j * 7) % 800 for j in range(4)], **fields}
        for i in range(rows // count)
    ]
    asyncio.run(_held(url, bodies, 0.3 + rows / 1000))
    steps: list[dict[str, float]] = probe(url, "probe_recorded")
    return steps


async def _held(url: str, bodies: Sequence[dict[str, Any]], seconds: float) -> None:
    """Sends requests while the engine waits."""
    holding = asyncio.create_task(asyncio.to_thread(probe, url, "probe_steps", str(seconds)))
    await asyncio.sleep(0.1)
    await posted(url, bodies, "/v1/completions")
    await holding


def times(steps: Sequence[dict[str, float]], rows: int) -> dict[str, float]:
    """Of the steps that draw a token for each row.

    Raises:
        RuntimeError: there are too few.
    """
    whole = [step["rows"] == step["tokens"] == rows for step in steps]
    pairs = [
        (a, b) for a, b, x, y in zip(steps, steps[1:], whole, whole[1:], strict=False) if x and y
    ]
    if len(pairs) < _LEAST:
        raise RuntimeError(f"{len(pairs)} steps of {rows} rows, of {len(steps)}; needs {_LEAST}")
    last = pairs[-1][1]
    found = {"ms": statistics.median(1e3 * (b["start"] - a["start"]) for a, b in pairs)}
    for kind in ("host", "device"):
        if kind in last:
            found[f"{kind} ms"] = statistics.median(a[kind] for a, _ in pairs)
            found[f"last, {kind} ms"] = last[kind]
    return found


def over(one: dict[str, float], plain: dict[str, float]) -> dict[str, float]:
    """The difference of each time."""
    return {name: one[name] - plain[name] for name in one}


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each time over the rounds."""
    return {name: round(statistics.median(made[name] for made in rounds), 4) for name in rounds[0]}
