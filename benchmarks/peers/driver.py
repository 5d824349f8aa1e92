"""A driver runs a peer's requests in a process of its own, in the peer's environment.

It reads a job a line from its standard input and answers each with a line: JSON both. Only the
standard library is imported here, since every environment runs it.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all peers are given.

    Attributes:
        server: URL of cdserve, which answers plain requests as the vLLM it is.
        optillm: URL of optillm's proxy of that server.
        k: candidates of a decision.
        m: tokens a block.
        beta: strength of the base model in token-wise decoding, in units of the reward.
        top_k: next tokens that a value head is asked of, where there is no Q-head.
        max_tokens: most tokens of an answer.
        threads: PyTorch's, where a loop runs the model itself.
    """

    server: str = ""
    optillm: str = ""
    model: str = "demo"
    k: int = 8
    m: int = 32
    beta: float = 0.3
    top_k: int = 10
    max_tokens: int = 192
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A peer's answer to one prompt.

    Attributes:
        text: the answer.
        decoded: tokens decoded for it, where no server counts them.
        read: tokens of prompts and prefixes read for it, likewise.
    """

    text: str
    decoded: int = 0
    read: int = 0


Method = Callable[[str], Awaitable[Answer]]
"""Answers one user message."""


@dataclass(slots=True, kw_only=True)
class Run:
    """Some prompts answered in a closed loop.

    Attributes:
        elapsed: seconds from the first request to the last answer.
        latencies: seconds of each request, in the order of the prompts.
        answers: in that order too.
    """

    elapsed: float = 0.0
    latencies: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)


async def closed_loop(method: Method, prompts: Sequence[str], concurrency: int) -> Run:
    """Answers the prompts, ``concurrency`` at a time; each answer lets the next request begin."""
    slots = asyncio.Semaphore(concurrency)

    async def timed(prompt: str) -> tuple[float, Answer]:
        async with slots:
            start = time.perf_counter()
            answer = await method(prompt)
            return time.perf_counter() - start, answer

    start = time.perf_counter()
    found = await asyncio.gather(*map(timed, prompts))
    return Run(
        elapsed=time.perf_counter() - start,
        latencies=[seconds for seconds, _ in found],
        answers=[answer for _, answer in found],
    )


async def serve(methods: Mapping[str, Method]) -> None:
    """Runs jobs from standard input until it ends; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        run = await closed_loop(methods[job["method"]], job["prompts"], job["concurrency"])
        print(json.dumps(asdict(run)), file=out, flush=True)


def setting() -> Setting:
    """What the parent gave this driver on its command line."""
    return Setting(**json.loads(sys.argv[1]))


class Driver:
    """A driver's process, seen from the benchmark.

    Args:
        python: the interpreter of the peer's environment.
        module: the driver, a module of this package.
        given: its setting.
    """

    def __init__(self, python: Path, module: str, given: Setting) -> None:
        self._name = module
        self._command = [python, "-m", f"benchmarks.peers.{module}", json.dumps(asdict(given))]

    def __enter__(self) -> "Driver":
        pipe = subprocess.PIPE
        self._process: subprocess.Popen[str] = subprocess.Popen(
            self._command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, method: str, prompts: Sequence[str], concurrency: int) -> Run:
        """Has the prompts answered by one of its methods.

        Raises:
            RuntimeError: the driver died; its standard error says why.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job: dict[str, Any] = {"method": method, "prompts": prompts, "concurrency": concurrency}
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"driver {self._name} died in {method!r}")
        found = json.loads(line)
        return Run(**{**found, "answers": [Answer(**one) for one in found["answers"]]})
