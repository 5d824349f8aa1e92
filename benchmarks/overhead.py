"""Cost of the search: candidate tokens per second relative to vLLM's own n=K sampling.

Each round runs the same prompts as plain ``n=K``, as best-of-K and as blockwise CD with each block
length on one server, in a rotating order. A ratio is the median of the rounds' ratios to plain
sampling, with quartiles. Two costs depend little on other work on the machine: engine steps per
round, and processor time per thousand candidate tokens of the API server and of the engine. Also
measures the time to the first streamed block relative to best-of-K's total time.

    python benchmarks/overhead.py --model demo --rounds 21 --output benchmarks/results/overhead.json
    python benchmarks/overhead.py --model smollm2 --rounds 15 --tokens 48 --prompt-tokens 24 33 \
        --concurrency 8 --output benchmarks/results/overhead-smollm2.json
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
from models import MODELS, machine, model
from server import Server, runs_model, totals

K = 8
_STEPS = "vllm:iteration_tokens_total_count", ""
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of the answers to all prompts of a round.

    Attributes:
        rate: candidate tokens per second.
        steps: engine steps.
        server_s: processor seconds of the API server per thousand candidate tokens.
        engine_s: processor seconds of the engine per thousand candidate tokens.
    """

    rate: float
    steps: float
    server_s: float
    engine_s: float


def arms(lengths: Sequence[int]) -> dict[str, Body]:
    """Fields of each arm's request; the first arm is plain sampling.

    Args:
        lengths: block lengths of blockwise CD, in tokens.
    """
    blockwise = {
        f"blockwise_cd, M={m}": {"alignment": {"method": "blockwise_cd", "k": K, "m": m}}
        for m in lengths
    }
    best_of_n = {"alignment": {"method": "best_of_n", "n": K}}
    return {"plain": {"n": K}, "best_of_n": best_of_n, **blockwise}


class Client:
    """Sends the requests of one measurement.

    Args:
        server: the server.
        tokens: tokens per candidate.
    """

    def __init__(self, server: Server, tokens: int) -> None:
        self._server = server
        self._tokens = tokens
        self._http = httpx2.AsyncClient(base_url=server.base_url, timeout=600)

    async def cost(self, arm: Body, prompts: Sequence[list[int]]) -> Cost:
        """Cost of all prompts under an arm, sent at once."""
        steps = await self._steps()
        server_s, engine_s = self._processor_seconds()
        start = time.perf_counter()
        answers = await asyncio.gather(*(self.complete(arm, prompt) for prompt in prompts))
        elapsed = time.perf_counter() - start
        server_end, engine_end = self._processor_seconds()
        steps = await self._steps() - steps
        counts = [
            a["alignment"]["candidate_tokens"]
            if "alignment" in a
            else a["usage"]["completion_tokens"]
            for a in answers
        ]
        assert all(count == K * self._tokens for count in counts), counts
        total = sum(counts)
        return Cost(
            rate=total / elapsed,
            steps=steps,
            server_s=(server_end - server_s) * 1000 / total,
            engine_s=(engine_end - engine_s) * 1000 / total,
        )

    async def complete(self, arm: Body, prompt: list[int]) -> dict[str, Any]:
        """The answer to a prompt under an arm."""
        answer = await self._http.post("/v1/completions", json=self._body(arm, prompt))
        answer.raise_for_status()
        result: dict[str, Any] = answer.json()
        return result

    async def first_block_seconds(self, arm: Body, prompt: list[int]) -> float:
        """Time to the first streamed block, in seconds."""
        start = time.perf_counter()
        request = {**self._body(arm, prompt), "stream": True}
        first = 0.0
        async with self._http.stream("POST", "/v1/completions", json=request) as answer:
            async for line in answer.aiter_lines():
                if not first and line.startswith("data: "):
                    first = time.perf_counter() - start
        return first

    async def seconds(self, arm: Body, prompt: list[int]) -> float:
        """Time to the whole answer, in seconds."""
        start = time.perf_counter()
        await self.complete(arm, prompt)
        return time.perf_counter() - start

    def _body(self, arm: Body, prompt: list[int]) -> Body:
        return {
            "model": "bench",
            "prompt": prompt,
            "max_tokens": self._tokens,
            "ignore_eos": True,
            "temperature": 1.0,
            **arm,
        }

    def _processor_seconds(self) -> tuple[float, float]:
        """Processor seconds so far of the API server, and of the processes that run the model."""
        root = psutil.Process(self._server.process.pid)
        seconds = {True: 0.0, False: 0.0}
        for process in (root, *root.children(recursive=True)):
            times = process.cpu_times()
            seconds[runs_model(process)] += times.user + times.system
        return seconds[False], seconds[True]

    async def _steps(self) -> float:
        metrics = await self._http.get("/metrics")
        return totals(metrics.text)[_STEPS]


async def measure(server: Server, args: argparse.Namespace, concurrency: int) -> dict[str, Any]:
    """A table row: medians over rounds."""
    compared = arms(args.m)
    names = list(compared)
    client = Client(server, args.tokens)
    rounds: list[dict[str, Cost]] = []
    for i in range(args.rounds + 1):
        prompts = [prompt_ids(args.prompt_tokens, seed=i * 1000 + c) for c in range(concurrency)]
        turn = i % len(names)
        order = [*names[turn:], *names[:turn]]
        costs = {name: await client.cost(compared[name], prompts) for name in order}
        if i:  # the first round warms up
            rounds.append(costs)
    row: dict[str, Any] = {"concurrency": concurrency, **figures(names, rounds)}
    if concurrency == 1:
        row["first_block_over_best_of_k"] = await first_block(client, compared, args)
    return row


def figures(names: Sequence[str], rounds: Sequence[Mapping[str, Cost]]) -> dict[str, Any]:
    """Medians of each arm over the rounds; rates are relative to plain sampling's."""
    plain = names[0]
    made: dict[str, Any] = {
        "plain_tokens_per_s": statistics.median(costs[plain].rate for costs in rounds)
    }
    for name in names:
        costs = [each[name] for each in rounds]
        made[name] = {
            "steps": statistics.median(cost.steps for cost in costs),
            "server_s_per_1000_tokens": statistics.median(cost.server_s for cost in costs),
            "engine_s_per_1000_tokens": statistics.median(cost.engine_s for cost in costs),
        }
        if name != plain:
            ratios = [each[name].rate / each[plain].rate for each in rounds]
            low, middle, high = statistics.quantiles(ratios, n=4)
            made[name] |= {"ratio": middle, "quartiles": [low, high]}
    return made


async def first_block(
    client: Client, compared: Mapping[str, Body], args: argparse.Namespace
) -> dict[str, float]:
    """Median time to the first block relative to best-of-K's whole answer, by arm."""
    made = {}
    for name in list(compared)[2:]:
        ratios = []
        for i in range(args.rounds):
            prompt = prompt_ids(args.prompt_tokens, 7 + i)
            block = await client.first_block_seconds(compared[name], prompt)
            ratios.append(block / await client.seconds(compared["best_of_n"], prompt))
        made[name] = statistics.median(ratios)
    return made


def prompt_ids(lengths: list[int], seed: int) -> list[int]:
    """Token ids with a unique prefix; lengths cycle through ``lengths``."""
    length = lengths[seed % len(lengths)]
    return [100 + (seed * 31 + i * 7) % 800 for i in range(length)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=list(MODELS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--m", type=int, nargs="+", default=[32, 16], help="block lengths")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per candidate")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[24, 33, 41, 57, 64, 78])
    parser.add_argument("--output", type=Path)
    parser.add_argument("flags", nargs="*", help="flags of the server, such as -- --block-size 64")
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name in args.model or ["demo"]:
        with Server(model(name).config(), *args.flags) as server:
            for concurrency in args.concurrency:
                row = asyncio.run(measure(server, args, concurrency))
                results.append({"model": name, **row})
                print(json.dumps(results[-1]), flush=True)
    if args.output:
        made = {
            "k": K,
            "m": args.m,
            "tokens": args.tokens,
            "prompt_tokens": args.prompt_tokens,
            "rounds": args.rounds,
            "machine": machine(),
            "results": results,
        }
        args.output.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
