"""Thousands of requests of all methods, many of whose clients leave, beside rewards that fail.

    python benchmarks/soak.py --requests 5000
    python benchmarks/soak.py --requests 5000 -- --api-server-count 2

At the end every request's outcome has been counted, nothing is alive in the engine or waits, and
memory has not grown in the second half. The process exits with 1 where one of these does not hold.
"""

import argparse
import asyncio
import json
import random
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import psutil
from models import machine
from server import Server, totals

from cdserve.demo import DEMO_DIR

Samples = Mapping[tuple[str, str], float]
"""By name and outcome."""
TILT = {"method": "tokenwise_cd", "beta": 0.3}
FAULTY = {
    name: {
        **{"kind": "python", "callable": "benchmarks.faults:flaky"},
        **{"on_failure": name, "timeout": 0.5},
    }
    for name in ("error", "skip", "base")
}
POLICIES: list[dict[str, Any]] = [
    {"method": "none"},
    {"method": "best_of_n", "n": 4},
    {"method": "best_of_n", "n": 3, "rewards": {"sentiment": 1.0, "error": 0.01}},
    {"method": "best_of_n", "n": 3, "rewards": {"sentiment": 1.0, "skip": 0.01}},
    {"method": "best_of_n", "n": 3, "rewards": {"sentiment": 1.0, "base": 0.01}},
    {"method": "best_of_n", "n": 4, "deadline_ms": 100},
    {"method": "blockwise_cd", "k": 3, "m": 16},
    {"method": "blockwise_cd", "k": 2, "m": 8, "beam_width": 2},
    {"method": "blockwise_cd", "k": 3, "m": 16, "proposal": TILT, "kl_budget": 2.0},
    {"method": "best_of_poisson", "mu": 2.0},
    {"method": "rejection", "eta": 1.0, "r_max": 3.0, "max_draws": 4},
    {"method": "cards", "m": 16, "r_star": 1.0, "max_draws": 4, "k": 2},
    {"method": "speculative_rejection", "n": 4, "m": 8},
    TILT,
    {"method": "logit_mixing", "weights": {"base": 0.5, "tuned": 0.5}},
]
ROUTES = {
    "/v1/completions": ("prompt", "max_tokens"),
    "/v1/chat/completions": ("messages", "max_tokens"),
    "/v1/chat/completions/batch": ("messages", "max_tokens"),
    "/v1/responses": ("input", "max_output_tokens"),
    "/v1/messages": ("messages", "max_tokens"),
}
"""The fields that hold what is asked, and the length of the answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--concurrency", type=int, default=24)
    parser.add_argument("--leaving", type=float, default=0.3, help="share of clients that leave")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/soak.json"))
    parser.add_argument("flags", nargs="*", help="for the server, such as -- --block-size 64")
    arguments = parser.parse_args()
    rewards = [f"--set=rewards.{name}={json.dumps(reward)}" for name, reward in FAULTY.items()]
    with Server(DEMO_DIR / "cdserve.yaml", *rewards, *arguments.flags) as server:
        found = asyncio.run(Soak(server, arguments).run())
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    failed = [name for name, held in found["checks"].items() if not held]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


class Soak:
    """The run: clients in a closed loop, and the server's memory beside."""

    def __init__(self, server: Server, arguments: argparse.Namespace) -> None:
        self._server = server
        self._arguments = arguments
        self._rng = random.Random(arguments.seed)
        self._outcomes = Counter[str]()
        self._begun = 0
        self._memory: list[tuple[int, dict[str, int]]] = []

    async def run(self) -> dict[str, Any]:
        """What is found."""
        limits = httpx2.Limits(max_connections=None)
        url = self._server.base_url
        async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
            for policy in POLICIES:  # first uses allocate
                await self._ask(client, policy, stream=False, leaves_after=None)
            self._outcomes.clear()
            before = await self._samples(client)
            began = time.monotonic()
            watching = asyncio.create_task(self._watch())
            await asyncio.gather(
                *(self._client(client) for _ in range(self._arguments.concurrency))
            )
            seconds = time.monotonic() - began
            watching.cancel()
            at_rest = await self._rest(client)
            after = await self._samples(client)
        return self._summary(seconds, before, after, at_rest)

    async def _client(self, client: httpx2.AsyncClient) -> None:
        while self._begun < self._arguments.requests:
            self._begun += 1
            leaves = self._rng.random() < self._arguments.leaving
            await self._ask(
                client,
                self._rng.choice(POLICIES),
                stream=self._rng.random() < 0.5,
                leaves_after=self._rng.expovariate(4.0) if leaves else None,
            )

    async def _ask(
        self,
        client: httpx2.AsyncClient,
        policy: dict[str, Any],
        *,
        stream: bool,
        leaves_after: float | None,
    ) -> None:
        kind = "plain" if policy["method"] == "none" else "aligned"
        route, (asks, length) = self._rng.choice(list(ROUTES.items()))
        prompt: Any = f"Review: item {self._rng.randrange(1000)} (garden)."
        if asks == "messages":
            prompt = [{"role": "user", "content": prompt}]
        if route.endswith("batch"):
            prompt, stream = [prompt], False
        body = {
            **{"model": "demo", "stream": stream, "alignment": policy},
            **{asks: prompt, length: self._rng.randint(4, 48)},
        }
        try:
            async with asyncio.timeout(leaves_after):
                outcome = await _answered(client, route, body)
        except TimeoutError:
            outcome = "left"
        self._outcomes[f"{kind} {outcome}"] += 1

    async def _watch(self) -> None:
        """Samples the resident memory of the server's processes."""
        while True:
            process = psutil.Process(self._server.process.pid)
            others = [p for p in process.children() if p.name().startswith("VLLM")]
            sizes = {p.name(): p.memory_info().rss for p in (process, *others)}
            self._memory.append((self._begun, sizes))
            await asyncio.sleep(1.0)

    async def _rest(self, client: httpx2.AsyncClient) -> dict[str, float]:
        """What is alive once the last clients have gone, after at most 20 seconds."""
        for _ in range(200):
            found = await self._samples(client)
            alive = {
                "engine requests": _sum(found, "vllm:num_requests_running")
                + _sum(found, "vllm:num_requests_waiting"),
                "running candidates": _sum(found, "cdserve_running_candidates"),
                "waiting candidates": _sum(found, "cdserve_waiting_candidates"),
            }
            if not any(alive.values()):
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(2.0)
        return {**alive, "tasks": _sum(await self._samples(client), "cdserve_tasks")}

    async def _samples(self, client: httpx2.AsyncClient) -> Samples:
        return totals((await client.get("/metrics")).text, "outcome")

    def _summary(
        self,
        seconds: float,
        before: Samples,
        after: Samples,
        at_rest: dict[str, float],
    ) -> dict[str, Any]:
        responses = {
            outcome: round(value - before.get((name, outcome), 0.0))
            for (name, outcome), value in sorted(after.items())
            if name == "cdserve_responses_total"
        }
        seen = self._outcomes
        finished = responses.get("stop", 0) + responses.get("length", 0)
        growth = _growth(self._memory, self._arguments.requests)
        left, sent = seen["aligned left"], sum(n for k, n in seen.items() if "aligned" in k)
        checks = {
            "every request has one outcome": sum(seen.values()) == self._arguments.requests,
            "answers seen were counted": (
                seen["aligned 200"] <= finished <= seen["aligned 200"] + left
            ),
            "failures seen were counted": (
                seen["aligned 500"] <= responses.get("error", 0) <= seen["aligned 500"] + left
            ),
            "no more than were sent": sent - left <= sum(responses.values()) <= sent,
            "only declared failures": set(seen) <= _DECLARED,
            "nothing alive": not any(at_rest[key] for key in at_rest if key != "tasks"),
            "no task pending": at_rest["tasks"] <= before[("cdserve_tasks", "")] + 2,
            "memory is flat": all(share < 0.05 for share in growth.values()),
        }
        return {
            "command": shlex.join(["python", "benchmarks/soak.py", *sys.argv[1:]]),
            "machine": machine(),
            "requests": self._arguments.requests,
            "concurrency": self._arguments.concurrency,
            "seconds": round(seconds, 1),
            "seen by clients": dict(sorted(seen.items())),
            "counted by the server": responses,
            "rewards that failed": round(
                _sum(after, "cdserve_reward_failures_total")
                - _sum(before, "cdserve_reward_failures_total")
            ),
            "at rest": at_rest,
            "tasks before": before[("cdserve_tasks", "")],
            "memory growth in the second half": growth,
            "checks": checks,
        }


_DECLARED = {
    *("plain 200", "plain left"),
    *("aligned 200", "aligned left", "aligned 500"),
}
"""500: a reward failed whose operator says that requests fail without it."""


async def _answered(client: httpx2.AsyncClient, route: str, body: dict[str, Any]) -> str:
    """The status, an error within a stream being a 500."""
    if not body["stream"]:
        return str((await client.post(route, json=body)).status_code)
    status = ""
    async with client.stream("POST", route, json=body) as answer:
        status = str(answer.status_code)
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and json.loads(line.removeprefix("data: ")).get("error"):
                status = "500"
    return status


def _sum(samples: Samples, name: str) -> float:
    return sum(value for (found, _), value in samples.items() if found == name)


def _growth(memory: list[tuple[int, dict[str, int]]], requests: int) -> dict[str, float]:
    """By process: how much larger its median is in the last tenth than in the one from the half."""

    def median(process: str, start: float, end: float) -> float:
        within = (s[process] for n, s in memory if start * requests <= n <= end * requests)
        return statistics.median(within)

    return {
        process: round(median(process, 0.9, 1.0) / median(process, 0.5, 0.6) - 1, 4)
        for process in memory[-1][1]
    }


if __name__ == "__main__":
    main()
