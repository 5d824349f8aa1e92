"""Scoring in batches: candidates a second, and what scoring takes of the time between blocks.

A reward model of the demo model's own size beside it, in its own engine. First the same responses
are scored all at once, eight a request, and one at a time, a response a request; rounds alternate,
with prompts of their own so that nothing is cached. Then blockwise CD (K = 8, M = 32) is run
towards the reward model, and towards the value head for comparison, and the server's own metrics
say how long decisions waited for their candidates and for their scores.

    python benchmarks/scoring.py --output benchmarks/results/scoring.json
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
from demos import demo
from models import machine
from server import Server

from cdserve.demo.tiny import HEAD_DIR
from cdserve.demo.tiny.build.reward_model import make_reward_model

K, M = 8, 32
MAX_TOKENS = 128

Client = httpx2.AsyncClient


def settings(folder: Path) -> Path:
    """The demo with a reward model that scores prefixes."""
    make_reward_model(folder)
    model = {"kind": "reward_model", "model": str(folder), "prefixes": True}
    head = {"kind": "value_head", "path": str(HEAD_DIR)}
    return demo("tiny").settings(rewards={"sentiment": head, "model": model})


async def responses(http: Client, prompt: str) -> list[str]:
    """K answers of the base."""
    sent = {"model": "demo", "prompt": prompt, "max_tokens": MAX_TOKENS, "n": K}
    made = (await http.post("/v1/completions", json=sent)).raise_for_status().json()
    return [choice["text"] for choice in made["choices"]]


async def score(http: Client, prompt: str, texts: Sequence[str]) -> None:
    sent = {"prompt": prompt, "responses": texts, "rewards": {"model": 1.0}}
    (await http.post("/v1/alignment/score", json=sent)).raise_for_status()


async def together(http: Client, prompts: Sequence[str], texts: Sequence[list[str]]) -> float:
    """Responses a second, all requests at once."""
    begin = time.perf_counter()
    await asyncio.gather(*map(score, [http] * len(prompts), prompts, texts))
    return sum(map(len, texts)) / (time.perf_counter() - begin)


async def one_by_one(http: Client, prompts: Sequence[str], texts: Sequence[list[str]]) -> float:
    """Responses a second, one request after the other."""
    begin = time.perf_counter()
    for prompt, several in zip(prompts, texts, strict=True):
        for text in several:
            await score(http, prompt, [text])
    return sum(map(len, texts)) / (time.perf_counter() - begin)


async def throughput(http: Client, prompts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Medians of both ways, and of the rounds' ratios."""
    texts = await asyncio.gather(*map(responses, [http] * len(prompts), prompts))
    found: dict[str, list[float]] = {"together": [], "one_by_one": []}
    ways = {"together": together, "one_by_one": one_by_one}
    await score(http, prompts[0], texts[0])
    for i in range(rounds):
        for name in sorted(ways, reverse=bool(i % 2)):
            own = [f"{name} {i}. {prompt}" for prompt in prompts]
            found[name].append(await ways[name](http, own, texts))
    ratios = [a / b for a, b in zip(*found.values(), strict=True)]
    return {
        **{name: statistics.median(rates) for name, rates in found.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


async def metrics(http: Client) -> dict[str, float]:
    """cdserve's metrics by name and labels."""
    lines = (await http.get("/metrics")).text.splitlines()
    read = dict(line.rsplit(" ", 1) for line in lines if line.startswith("cdserve_"))
    return {name.removeprefix("cdserve_"): float(value) for name, value in read.items()}


async def spent(http: Client) -> tuple[float, float, float]:
    """Seconds so far that decisions waited for candidates and for scores; decisions."""
    read = await metrics(http)
    return read["generate_seconds_sum"], read["score_seconds_sum"], read["score_seconds_count"]


async def batches(http: Client) -> dict[str, float]:
    """Batches that the reward model has scored, and the responses in them."""
    read = await metrics(http)
    labels = '{reward="model"}'
    return {
        "batches": read[f"scorer_batch_size_count{labels}"],
        "scored": read[f"scorer_batch_size_sum{labels}"],
    }


async def share(
    http: Client, prompts: Sequence[str], concurrency: int, reward: str
) -> dict[str, float]:
    """What scoring takes of the time between blocks."""
    slots = asyncio.Semaphore(concurrency)
    policy = {"method": "blockwise_cd", "k": K, "m": M, "rewards": {reward: 1.0}}

    async def ask(prompt: str) -> None:
        async with slots:
            sent = {"model": "demo", "prompt": prompt, "max_tokens": MAX_TOKENS}
            answer = await http.post("/v1/completions", json={**sent, "alignment": policy})
            answer.raise_for_status()

    before = await spent(http)
    await asyncio.gather(*map(ask, prompts))
    generate, scored, count = (b - a for a, b in zip(before, await spent(http), strict=True))
    return {
        "generate_ms": 1000 * generate / count,
        "score_ms": 1000 * scored / count,
        "share": scored / (generate + scored),
    }


async def measure(base_url: str, count: int, rounds: int) -> dict[str, Any]:
    prompts = demo("tiny").prompts(True)[:count]
    async with Client(base_url=base_url, timeout=300) as http:
        found: dict[str, Any] = {"throughput": await throughput(http, prompts, rounds)}
        for concurrency in (1, 8):
            for reward in ("model", "sentiment"):
                name = f"{reward}, {concurrency} at once"
                found[name] = await share(http, prompts, concurrency, reward)
        found["scorer"] = await batches(http)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="cdserve-bench-") as folder,
        Server(settings(Path(folder) / "rm")) as server,
    ):
        found = asyncio.run(measure(server.base_url, args.prompts, args.rounds))
    print(json.dumps(found, indent=2))
    if args.output:
        made = {"k": K, "m": M, "prompts": args.prompts, "rounds": args.rounds}
        args.output.write_text(json.dumps({**made, "machine": machine(), **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
