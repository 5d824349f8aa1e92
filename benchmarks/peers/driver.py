"""Runs a peer's requests in a separate process with the peer's environment.

The process reads one JSON job per line from standard input and writes one JSON line per job. This
module imports the standard library only, since it runs in every environment.
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
    """Settings shared by all peers.

    Attributes:
        server: URL of cdserve, which handles plain requests like vLLM.
        optillm: URL of optillm's proxy in front of the server.
        generator: URL of a plain vLLM server; the same model without heads.
        model: served model id.
        k: candidates per decision.
        m: tokens per block.
        beam_width: beams of beam search; each has ``k // beam_width`` candidates per step.
        beta: strength of the base model in token-wise decoding, in reward units per nat.
        top_k: number of next tokens to evaluate by a value head, without a Q-head.
        max_tokens: maximum tokens per answer.
        threads: PyTorch threads of the Transformers loops.
        policies: the field ``alignment`` of further rows of cdserve, by row name.
    """

    server: str = ""
    optillm: str = ""
    generator: str = ""
    model: str = "demo"
    k: int = 8
    m: int = 32
    beam_width: int = 4
    beta: float = 0.3
    top_k: int = 10
    max_tokens: int = 192
    threads: int = 1
    policies: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A peer's answer to one prompt.

    Attributes:
        text: the answer.
        decoded: number of decoded tokens; 0 if a server counts them.
        read: number of prompt and prefix tokens read; 0 if a server counts them.
    """

    text: str
    decoded: int = 0
    read: int = 0


Method = Callable[[str], Awaitable[Answer]]
"""Answers one user message."""


@dataclass(slots=True, kw_only=True)
class Run:
    """Prompts answered in a closed loop.

    Attributes:
        elapsed: seconds from the first request to the last answer.
        latencies: seconds of each request, ordered by prompt.
        answers: answers, ordered by prompt.
    """

    elapsed: float = 0.0
    latencies: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)


async def closed_loop(method: Method, prompts: Sequence[str], concurrency: int) -> Run:
    """Answers the prompts with a constant number of concurrent requests."""
    slots = asyncio.Semaphore(concurrency)

    async def timed(prompt: str) -> tuple[float, Answer]:
        async with slots:
            start = time.perf_counter()
            answer = await method(prompt)
            return time.perf_counter() - start, answer

    start = time.perf_counter()
    results = await asyncio.gather(*map(timed, prompts))
    return Run(
        elapsed=time.perf_counter() - start,
        latencies=[seconds for seconds, _ in results],
        answers=[answer for _, answer in results],
    )


async def serve(methods: Mapping[str, Method]) -> None:
    """Runs jobs from standard input; output of libraries goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        run = await closed_loop(methods[job["method"]], job["prompts"], job["concurrency"])
        print(json.dumps(asdict(run)), file=out, flush=True)


def setting() -> Setting:
    """The settings on this driver's command line."""
    return Setting(**json.loads(sys.argv[1]))


class Driver:
    """A driver's process; a context manager.

    Args:
        python: interpreter of the peer's environment.
        module: name of the driver's module in this package.
        settings: settings of the driver.
    """

    def __init__(self, python: Path, module: str, settings: Setting) -> None:
        self._name = module
        self._command = [python, "-m", f"benchmarks.peers.{module}", json.dumps(asdict(settings))]

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
        """Answers the prompts by a method of the driver.

        Raises:
            RuntimeError: the driver died; the cause is on its standard error.
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
        fields = json.loads(line)
        return Run(**{**fields, "answers": [Answer(**answer) for answer in fields["answers"]]})
