"""Ray Serve with one and two replicas, compared with a plain server, and with killed replicas.

    python benchmarks/replicas.py

A plain `cdserve serve`, an application with one replica and one with two serve the demo. Rounds
alternate between them, and only one of them has requests at a time. Each engine uses one thread.
Then replicas of the two-replica application are killed under load, one per round, and all requests
are counted by outcome.
"""

import os

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_process_group_cleanup_enabled": "true",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "cdserve.ray_serve.proxy:middlewares",
}

import argparse
import asyncio
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import ray
import yaml
from models import machine
from ray import serve
from server import Server, free_port, runs_model, totals

from cdserve.demo.tiny import DEMO_DIR
from cdserve.ray_serve import app
from cdserve.ray_serve.deployment import Arguments

LOADS: dict[str, dict[str, Any]] = {
    "plain": {"max_tokens": 64},
    "blockwise": {"max_tokens": 64, "alignment": {"method": "blockwise_cd", "k": 4, "m": 16}},
}
LONG = {"max_tokens": 1500}
SHORT = {"max_tokens": 16}
CHANGES = ("members={}", "presets={}", "engine.kv_cache_memory_bytes=134217728")
RUNNING = "vllm:num_requests_running"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds per load and round")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument(
        "--kills",
        type=int,
        default=4,
        help="number of kills, alternating between engines and replicas",
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/replicas.json"))
    arguments = parser.parse_args()
    flags = [f"--set={change}" for change in CHANGES]
    with Server(DEMO_DIR / "cdserve.yaml", *flags) as plain, _cluster() as base_url:
        urls = {
            "cdserve serve": plain.base_url,
            "one replica": f"{base_url}/one",
            "two replicas": f"{base_url}/two",
        }
        rounds = asyncio.run(_measure(urls, arguments))
        whats = [("engine", "replica")[i % 2] for i in range(arguments.kills)]
        kills = [asyncio.run(_kill(urls["two replicas"], what)) for what in whats]
    rows = {load: _row(found) for load, found in rounds.items()}
    command = shlex.join(["python", "benchmarks/replicas.py", *sys.argv[1:]])
    made = {"command": command, "machine": f"{machine()}, ray {ray.__version__}"}
    made |= {"throughput": rows, "kills": kills}
    arguments.output.write_text(json.dumps(made, indent=2) + "\n")
    print(yaml.safe_dump(made, sort_keys=False))


@contextmanager
def _cluster() -> Iterator[str]:
    """Yields the proxy's URL of a local cluster with both applications."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            for name, replicas in (("one", 1), ("two", 2)):
                made = app(Arguments(set=CHANGES, replicas=replicas, cpus=0.5))
                serve.run(made, name=name, route_prefix=f"/{name}")
            yield f"http://127.0.0.1:{port}"
            serve.shutdown()
        finally:
            ray.shutdown()


async def _measure(
    urls: Mapping[str, str], arguments: argparse.Namespace
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Figures of every round, by load and server."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        load: defaultdict(list) for load in LOADS
    }
    for name, url in urls.items():  # first uses take longer
        for fields in LOADS.values():
            await _round(url, fields, arguments.clients, 3.0)
        print(f"{name} is warm", file=sys.stderr)
    for _ in range(arguments.rounds):
        for load, fields in LOADS.items():
            for name, url in urls.items():
                one = await _round(url, fields, 1, arguments.seconds / 4)
                many = await _round(url, fields, arguments.clients, arguments.seconds)
                found[load][name].append(
                    {"requests a second": many["rate"], "alone, seconds": one["median"]}
                )
    return found


async def _round(
    url: str, fields: Mapping[str, Any], clients: int, seconds: float
) -> dict[str, float]:
    """Answers per second and median latency of clients in a closed loop."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        began = time.monotonic()
        ends = began + seconds
        every = await asyncio.gather(*(_client(http, fields, i, ends) for i in range(clients)))
        latencies = [latency for one in every for latency in one]
        rate = len(latencies) / (time.monotonic() - began)
    return {"rate": rate, "median": statistics.median(latencies)}


async def _client(
    http: httpx2.AsyncClient, fields: Mapping[str, Any], client: int, ends: float
) -> list[float]:
    latencies: list[float] = []
    while time.monotonic() < ends:
        began = time.monotonic()
        status = await _ask(http, fields, f"{client}-{len(latencies)}")
        assert status == 200, status
        latencies.append(time.monotonic() - began)
    return latencies


async def _ask(http: httpx2.AsyncClient, fields: Mapping[str, Any], name: str) -> int:
    body = {"model": "demo", "prompt": f"Review: item {name} (garden).", "ignore_eos": True}
    return (await http.post("/v1/completions", json={**body, **fields})).status_code


def _row(found: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over rounds, and medians of the per-round ratios."""
    row: dict[str, Any] = {
        name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        for name, rounds in found.items()
    }
    plain, one, two = (
        [round_["requests a second"] for round_ in rounds] for rounds in found.values()
    )
    row["one replica over cdserve serve"] = _ratio(one, plain)
    row["two replicas over one"] = _ratio(two, one)
    return row


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}


async def _kill(url: str, what: str) -> dict[str, Any]:
    """Kills a replica or its engine under load; counts requests by outcome."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        long = [asyncio.create_task(_ask(http, LONG, str(i))) for i in range(12)]
        held = await _seen(http, lambda found: sum(found.values()) == len(long))
        stop = asyncio.Event()
        short = [asyncio.create_task(_ask_until(http, stop)) for _ in range(4)]
        await asyncio.sleep(0.5)
        replica = _replicas()[0]
        (engine,) = filter(runs_model, replica.children())
        (engine if what == "engine" else replica).kill()
        killed = time.monotonic()
        statuses = await asyncio.gather(*long)
        others = await _seen(http, lambda found: len(found) == 2 and found.keys() != held.keys())
        seconds = time.monotonic() - killed
        stop.set()
        asked = [each for one in await asyncio.gather(*short) for each in one]
    (dead,) = held.keys() - others.keys()
    later = [status for began, status in asked if began > killed]
    return {
        "killed": what,
        "long requests": len(long),
        "of them on the killed replica": held[dead],
        "of them lost": sum(status != 200 for status in statuses),
        "short requests begun before": len(asked) - len(later),
        "of those lost": sum(s != 200 for began, s in asked if began <= killed),
        "short requests begun later": len(later),
        "of these lost": sum(status != 200 for status in later),
        "seconds until there were two again": round(seconds, 1),
    }


async def _ask_until(http: httpx2.AsyncClient, stop: asyncio.Event) -> list[tuple[float, int]]:
    """Sends requests in a closed loop; records the time and status of each."""
    asked = []
    while not stop.is_set():
        asked.append((time.monotonic(), await _ask(http, SHORT, "short")))
    return asked


async def _seen(
    http: httpx2.AsyncClient, there: Callable[[dict[str, float]], bool]
) -> dict[str, float]:
    """Waits for a condition on the running requests by replica; returns them."""
    while True:
        counted = totals((await http.get("/metrics")).text, "replica")
        found = {replica: count for (name, replica), count in counted.items() if name == RUNNING}
        if there(found):
            return found
        await asyncio.sleep(0.2)


def _replicas() -> list[psutil.Process]:
    """The replicas of the two-replica application, ordered by start time."""
    every = psutil.Process().children(recursive=True)
    found = [one for one in every if " ".join(one.cmdline()).startswith("ray::ServeReplica:two")]
    return sorted(found, key=psutil.Process.create_time)


if __name__ == "__main__":
    main()
