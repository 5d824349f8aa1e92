"""Latency of plain requests next to clients that send best-of-64, by ``admission.max_running``.

    python benchmarks/fairness.py

One server per setting of ``admission.max_running``; rounds alternate between the servers, so that
noise affects all of them alike. ``off`` is more than the engine runs concurrently: candidates wait
in vLLM's own first-come-first-served queue, and plain requests behind them.
"""

import argparse
import asyncio
import json
import shlex
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
from models import machine
from server import Server

from cdserve.demo.tiny import DEMO_DIR

SETTINGS = {"off": 100_000, "default": None, "64": 64, "16": 16}
"""Values of ``admission.max_running``."""
LARGE = {"method": "best_of_n", "n": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="seconds per setting and round")
    parser.add_argument(
        "--clients", type=int, default=6, help="number of clients that send best-of-64 requests"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/fairness.json"))
    arguments = parser.parse_args()
    with ExitStack() as stack:
        servers = {name: stack.enter_context(_server(most)) for name, most in SETTINGS.items()}
        measured = asyncio.run(_measure(servers, arguments))
    rows = {name: _row(rounds) for name, rounds in measured.items()}
    command = shlex.join(["python", "benchmarks/fairness.py", *sys.argv[1:]])
    content = {"command": command, "machine": machine(), "rows": rows}
    arguments.output.write_text(json.dumps(content, indent=2) + "\n")
    print(_table(rows))


def _server(most: int | None) -> Server:
    flags = [] if most is None else [f"--set=admission.max_running={most}"]
    return Server(DEMO_DIR / "cdserve.yaml", "--set=members={}", "--set=presets={}", *flags)


async def _measure(
    servers: dict[str, Server], arguments: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in ["alone", *servers]}
    seconds, clients = arguments.seconds, arguments.clients
    for server in servers.values():  # warm-up
        await _round(server, 2, 3.0)
    for _ in range(arguments.rounds):
        measured["alone"].append(await _round(servers["default"], 0, seconds / 2))
        for name, server in servers.items():
            measured[name].append(await _round(server, clients, seconds))
    return measured


async def _round(server: Server, clients: int, seconds: float) -> dict[str, Any]:
    """Latencies of one sequential plain client, and of the best-of-64 clients."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=server.base_url, timeout=300, limits=limits) as http:
        ends = time.monotonic() + seconds
        large = [asyncio.create_task(_client(http, LARGE, ends)) for _ in range(clients)]
        await asyncio.sleep(min(1.0, seconds / 4) if clients else 0.0)
        plain = await _client(http, {"method": "none"}, ends)
        began = time.monotonic()
        drained = await asyncio.gather(*large)
        return {
            "plain": plain,
            "large": [latency for latencies in drained for latency in latencies],
            "seconds": seconds + time.monotonic() - began,
        }


async def _client(http: httpx2.AsyncClient, policy: dict[str, Any], ends: float) -> list[float]:
    latencies = []
    body = {"model": "demo", "max_tokens": 32, "ignore_eos": True, "alignment": policy}
    while time.monotonic() < ends:
        began = time.monotonic()
        text = f"Review: item {len(latencies)} (garden)."
        answer = await http.post("/v1/completions", json={**body, "prompt": text})
        answer.raise_for_status()
        latencies.append(time.monotonic() - began)
    return latencies


def _row(rounds: list[dict[str, Any]]) -> dict[str, float | None]:
    """Medians over rounds of each round's latency quantiles, in seconds."""

    def quantile(name: str, q: float) -> float:
        return statistics.median(_quantile(r[name], q) for r in rounds if r[name])

    large = any(r["large"] for r in rounds)
    return {
        "plain requests": sum(len(r["plain"]) for r in rounds),
        "plain p50": quantile("plain", 0.5),
        "plain p99": quantile("plain", 0.99),
        "best-of-64 p50": quantile("large", 0.5) if large else None,
        "best-of-64 a second": statistics.median(len(r["large"]) / r["seconds"] for r in rounds),
    }


def _quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def _table(rows: dict[str, dict[str, float | None]]) -> str:
    names = list(next(iter(rows.values())))
    lines = [f"| max_running | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for setting, row in rows.items():
        cells = ["" if (value := row[name]) is None else f"{value:.2f}" for name in names]
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
