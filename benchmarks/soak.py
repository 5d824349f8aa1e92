"""Soak test: random requests of all routes and methods, with disconnects, shared ids and retries.

    python benchmarks/soak.py --requests 5000
    python benchmarks/soak.py --requests 5000 --lora
    python benchmarks/soak.py --requests 5000 -- --api-server-count 2

Rewards raise, hang or are NaN; some requests have deadlines or are invalid. In the end, every
request must be answered correctly, fail as declared by the operator, be refused, or lose its
client; the server's counts must match; no request may run, wait or hold candidates; and memory must
not have grown in the second half. Otherwise the process exits with 1, and ``unexplained`` lists the
requests and their answers.
"""

import argparse
import asyncio
import json
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import psutil
from adapter import write_adapter
from models import machine
from server import Server, totals
from soak_answers import Answer, ask, judged
from soak_requests import ADAPTER, CAPACITY, Asked, Requests

from cdserve.demo.tiny import DEMO_DIR

Samples = Mapping[tuple[str, str], float]
"""Counts by metric name and outcome."""
_RUNNING = 32
_TRIES = 2
"""Maximum number of attempts of a client that retries after an error."""
_SHOWN = 4000
"""Number of characters of an unexplained answer to keep."""
_FLAT_FROM = 2000
"""Minimum number of requests for the check of memory growth; the KV cache is first used before."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--concurrency", type=int, default=24)
    parser.add_argument("--leaving", type=float, default=0.3, help="share of clients that leave")
    parser.add_argument(
        "--lora", action="store_true", help="serve a LoRA adapter instead of members"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/soak.json"))
    parser.add_argument("flags", nargs="*", help="flags of the server, such as -- --block-size 64")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = [*_settings(), *(_lora(Path(folder)) if arguments.lora else []), *arguments.flags]
        with Server(DEMO_DIR / "cdserve.yaml", *flags) as server:
            found = asyncio.run(Soak(server, arguments).run())
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    failed = [name for name, held in found["checks"].items() if not held]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _settings() -> list[str]:
    faulty = {"kind": "python", "callable": "benchmarks.faults:flaky", "timeout": 0.5}
    rewards = {name: {**faulty, "on_failure": name} for name in ("error", "skip", "base")}
    return [
        *(f"--set=rewards.{name}={json.dumps(reward)}" for name, reward in rewards.items()),
        f"--set=admission.max_running={_RUNNING}",
        f"--set=admission.max_waiting={CAPACITY - _RUNNING}",
    ]


def _lora(folder: Path) -> list[str]:
    write_adapter(folder)
    without = ["--set=members={}", "--set=presets={}"]
    return [*without, "--enable-lora", "--lora-modules", f"{ADAPTER}={folder}"]


class Soak:
    """A run of clients in a closed loop, with samples of the server's memory."""

    def __init__(self, server: Server, arguments: argparse.Namespace) -> None:
        self._server = server
        self._arguments = arguments
        self._rng = random.Random(arguments.seed)
        self._requests = Requests(self._rng, lora=arguments.lora)
        self._outcomes = Counter[str]()
        self._choices = Counter[str]()
        """Number of choices of requests with a policy, by outcome of the request."""
        self._unexplained: list[dict[str, Any]] = []
        self._begun = 0
        self._memory: list[tuple[int, dict[str, int]]] = []

    async def run(self) -> dict[str, Any]:
        """Runs the soak and returns its figures."""
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        url = self._server.base_url
        async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
            for first in self._requests.first():  # first uses allocate
                await ask(client, first)
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
            full = await ask(client, self._requests.full())
        return self._summary(seconds, before, after, {**at_rest, "full": full.status})

    async def _client(self, client: httpx2.AsyncClient) -> None:
        situations = [self._alone, self._alone, self._alone, self._twins, self._again]
        while self._begun < self._arguments.requests:
            await self._rng.choice(situations)(client)

    async def _alone(self, client: httpx2.AsyncClient) -> None:
        """Sends a request whose client may disconnect."""
        leaves = self._rng.random() < self._arguments.leaving
        await self._ask(client, self._requests.draw(), self._moment() if leaves else None)

    async def _twins(self, client: httpx2.AsyncClient) -> None:
        """Sends concurrent requests with one id; the first client disconnects, the others stay."""
        shared = self._id()
        first, *others = (self._requests.draw(shared) for _ in range(self._rng.randint(2, 3)))
        if self._rng.random() < 0.5:
            others[0] = first
        await asyncio.gather(
            self._ask(client, first, self._moment()), *(self._ask(client, one) for one in others)
        )

    async def _again(self, client: httpx2.AsyncClient) -> None:
        """Sends a request again with the same id right after a disconnect or a failure."""
        asked = self._requests.draw(self._id())
        outcome = await self._ask(client, asked, self._moment())
        for _ in range(_TRIES):
            if outcome in ("answered", "refused"):
                return
            outcome = await self._ask(client, asked)

    def _moment(self) -> float:
        """A random number of seconds after which a client disconnects."""
        return self._rng.expovariate(4.0)

    def _id(self) -> str:
        return f"client-{self._rng.randrange(1 << 40)}"

    async def _ask(
        self, client: httpx2.AsyncClient, asked: Asked, leaves_after: float | None = None
    ) -> str:
        """Sends a request and records the outcome."""
        self._begun += 1
        answer: Answer | None = None
        try:
            async with asyncio.timeout(leaves_after):
                answer = await ask(client, asked)
            outcome, wrong = judged(asked, answer)
        except TimeoutError:
            outcome, wrong = "left", None
        except httpx2.TransportError as error:
            outcome, wrong = "lost", repr(error)
        if wrong is not None:
            self._book(asked, answer, wrong)
        self._outcomes[outcome if wrong is None else "unexplained"] += 1
        if asked.policy is not None and asked.policy["method"] != "none":
            self._choices[outcome] += asked.answers
        return outcome

    def _book(self, asked: Asked, answer: Answer | None, wrong: str) -> None:
        """Records an unexplained answer."""
        sent = {"route": asked.route, "headers": asked.headers, "body": asked.body}
        came = None if answer is None else [answer.status, answer.content[-_SHOWN:]]
        self._unexplained.append({"wrong": wrong, "sent": sent, "came": came})

    async def _watch(self) -> None:
        """Samples the resident memory of the server's processes."""
        while True:
            process = psutil.Process(self._server.process.pid)
            others = [p for p in process.children() if p.name().startswith("VLLM")]
            sizes = {p.name(): p.memory_info().rss for p in (process, *others)}
            self._memory.append((self._begun, sizes))
            await asyncio.sleep(1.0)

    async def _rest(self, client: httpx2.AsyncClient) -> dict[str, float]:
        """Requests and tasks that remain after the last client, waiting at most 20 seconds."""
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
        growth = _growth(self._memory, self._begun) if self._begun >= _FLAT_FROM else {}
        alive = ("engine requests", "running candidates", "waiting candidates")
        checks = {
            "every request is explained": not self._unexplained,
            "every request has one outcome": sum(self._outcomes.values()) == self._begun,
            **self._counted(responses),
            "nothing alive": not any(at_rest[name] for name in alive),
            "no room held": at_rest["full"] == 200,
            "no task pending": at_rest["tasks"] <= before[("cdserve_tasks", "")] + 2,
            "memory is flat": all(share < 0.05 for share in growth.values()),
        }
        return {
            "command": shlex.join(["python", "benchmarks/soak.py", *sys.argv[1:]]),
            "machine": machine(),
            "requests": self._begun,
            "concurrency": self._arguments.concurrency,
            "seconds": round(seconds, 1),
            "seen by clients": dict(sorted(self._outcomes.items())),
            "choices under a policy": dict(sorted(self._choices.items())),
            "counted by the server": responses,
            "rewards that failed": round(
                _sum(after, "cdserve_reward_failures_total")
                - _sum(before, "cdserve_reward_failures_total")
            ),
            "at rest": at_rest,
            "tasks before": before[("cdserve_tasks", "")],
            "memory growth in the second half": growth,
            "unexplained": self._unexplained,
            "checks": checks,
        }

    def _counted(self, responses: Mapping[str, int]) -> dict[str, bool]:
        """Whether the server's counts are consistent with the choices that clients received.

        For failed requests and disconnected clients the number of finished choices is unknown.
        """
        seen = self._choices
        finished = responses.get("stop", 0) + responses.get("length", 0)
        unseen = sum(seen[name] for name in ("failed", "left", "lost"))
        most = seen["answered"] + unseen
        return {
            "answers seen were counted": seen["answered"] <= finished <= most,
            "errors counted are of requests that failed": responses.get("error", 0) <= unseen,
            "as many as were sent": seen["answered"] <= sum(responses.values()) <= most,
        }


def _sum(samples: Samples, name: str) -> float:
    return sum(value for (found, _), value in samples.items() if found == name)


def _growth(memory: list[tuple[int, dict[str, int]]], requests: int) -> dict[str, float]:
    """Growth of the median memory from the tenth after the half to the last tenth, by process."""

    def median(process: str, start: float, end: float) -> float:
        within = (s[process] for n, s in memory if start * requests <= n <= end * requests)
        return statistics.median(within)

    return {
        process: round(median(process, 0.9, 1.0) / median(process, 0.5, 0.6) - 1, 4)
        for process in memory[-1][1]
    }


if __name__ == "__main__":
    main()
