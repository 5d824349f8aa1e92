"""Cost of the search: candidate tokens per second relative to vLLM's own n=K sampling.

Each round runs the same prompts as plain ``n=K``, as best-of-K and as blockwise CD on one server,
in a rotating order. A ratio is the ratio of median rates, with the quartiles of the per-round
ratios. Also measures the time to the first streamed block relative to best-of-K's total time.

    python benchmarks/overhead.py --model demo --rounds 21 --output benchmarks/results/overhead.json
    python benchmarks/overhead.py --model 100m --rounds 5 --tokens 64 \
        --output benchmarks/results/overhead-100m.json
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import httpx2
from models import machine, model
from server import Server

K, M = 8, 32
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"n": K},
    "best_of_n": {"alignment": {"method": "best_of_n", "n": K}},
    "blockwise_cd": {"alignment": {"method": "blockwise_cd", "k": K, "m": M}},
}


async def run_arm(
    client: httpx2.AsyncClient, arm: str, prompts: list[list[int]], tokens: int
) -> float:
    """Candidate tokens per second of all prompts concurrently."""
    start = time.perf_counter()
    answers = await asyncio.gather(*(complete(client, ARMS[arm], p, tokens) for p in prompts))
    elapsed = time.perf_counter() - start
    counts = [
        a["alignment"]["candidate_tokens"] if "alignment" in a else a["usage"]["completion_tokens"]
        for a in answers
    ]
    assert all(count == K * tokens for count in counts), counts
    return sum(counts) / elapsed


async def complete(
    client: httpx2.AsyncClient, arm: dict[str, Any], prompt: list[int], tokens: int
) -> dict[str, Any]:
    answer = await client.post("/v1/completions", json=body(arm, prompt, tokens))
    answer.raise_for_status()
    result: dict[str, Any] = answer.json()
    return result


async def first_block_over_whole(
    client: httpx2.AsyncClient, prompt: list[int], tokens: int
) -> tuple[float, float]:
    """Time to the first streamed block, and best-of-K's end-to-end time, in seconds."""
    start = time.perf_counter()
    request = {**body(ARMS["blockwise_cd"], prompt, tokens), "stream": True}
    first = 0.0
    async with client.stream("POST", "/v1/completions", json=request) as answer:
        async for line in answer.aiter_lines():
            if not first and line.startswith("data: "):
                first = time.perf_counter() - start
    start = time.perf_counter()
    await complete(client, ARMS["best_of_n"], prompt, tokens)
    return first, time.perf_counter() - start


def body(arm: dict[str, Any], prompt: list[int], tokens: int) -> dict[str, Any]:
    return {
        "model": "bench",
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 1.0,
        **arm,
    }


async def measure(base: str, args: argparse.Namespace, concurrency: int) -> dict[str, Any]:
    """A table row: medians over rounds."""
    rounds: list[dict[str, float]] = []
    async with httpx2.AsyncClient(base_url=base, timeout=600) as client:
        for i in range(args.rounds + 1):
            prompts = [
                prompt_ids(args.prompt_tokens, seed=i * 1000 + c) for c in range(concurrency)
            ]
            order = [*list(ARMS)[i % 3 :], *list(ARMS)[: i % 3]]
            rates = {arm: await run_arm(client, arm, prompts, args.tokens) for arm in order}
            if i:  # the first round warms up
                rounds.append(rates)
        times = [
            await first_block_over_whole(client, prompt_ids(args.prompt_tokens, 7 + i), args.tokens)
            for i in range(args.rounds if concurrency == 1 else 0)
        ]
    row: dict[str, Any] = {
        "concurrency": concurrency,
        "plain_tokens_per_s": statistics.median(r["plain"] for r in rounds),
    }
    for arm in ("best_of_n", "blockwise_cd"):
        low, _, high = statistics.quantiles([r[arm] / r["plain"] for r in rounds], n=4)
        rate = statistics.median(r[arm] for r in rounds)
        row[arm] = {"ratio": rate / row["plain_tokens_per_s"], "quartiles": [low, high]}
    if times:
        row["first_block_over_best_of_k"] = statistics.median(a / b for a, b in times)
    return row


def prompt_ids(lengths: list[int], seed: int) -> list[int]:
    """Token ids with a unique prefix; lengths cycle through ``lengths``."""
    length = lengths[seed % len(lengths)]
    return [100 + (seed * 31 + i * 7) % 800 for i in range(length)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=["demo", "100m"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128, help="tokens per candidate")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[24, 33, 41, 57, 64, 78])
    parser.add_argument("--output", type=Path)
    parser.add_argument("flags", nargs="*", help="flags of the server, such as -- --block-size 64")
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name in args.model or ["demo", "100m"]:
        with Server(model(name).config(), *args.flags) as server:
            for concurrency in args.concurrency:
                row = asyncio.run(measure(server.base_url, args, concurrency))
                results.append({"model": name, **row})
                print(json.dumps(results[-1]), flush=True)
    if args.output:
        made = {
            "k": K,
            "m": M,
            "tokens": args.tokens,
            "prompt_tokens": args.prompt_tokens,
            "rounds": args.rounds,
            "machine": machine(),
            "results": results,
        }
        args.output.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
