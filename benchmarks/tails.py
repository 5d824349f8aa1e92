"""What reusing the KV of unfinished blocks gains: blockwise CD with cdserve's scheduler and vLLM's.

Two servers, one with each scheduler, take the same prompts in turn; each round also runs plain
``n=K`` on both, so that what the scheduler costs other requests shows as well.

    python benchmarks/tails.py
"""

import argparse
import asyncio
import json
import statistics

import httpx2
from models import model
from overhead import prompt_ids, run_arm
from server import Server

VLLM = ("--scheduler-cls", "vllm.v1.core.sched.scheduler.Scheduler")
ARMS = ("plain", "blockwise_cd")


async def measure(with_tails: str, without: str, args: argparse.Namespace) -> dict[str, float]:
    """Medians over rounds of tokens per second with tails over without, in both arms."""
    ratios: dict[str, list[float]] = {arm: [] for arm in ARMS}
    async with (
        httpx2.AsyncClient(base_url=with_tails, timeout=600) as tails,
        httpx2.AsyncClient(base_url=without, timeout=600) as none,
    ):
        for i in range(args.rounds + 1):
            prompts = [prompt_ids([24, 33, 41, 57], i * 1000 + c) for c in range(args.concurrency)]
            for arm in ARMS:
                order = (tails, none) if i % 2 else (none, tails)
                rate = {c: await run_arm(c, arm, prompts, args.tokens) for c in order}
                if i:  # the first round warms up
                    ratios[arm].append(rate[tails] / rate[none])
    return {arm: statistics.median(found) for arm, found in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["demo", "100m"], default="demo")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    config = model(args.model).config()
    with Server(config) as tails, Server(config, *VLLM) as none:
        print(json.dumps(asyncio.run(measure(tails.base_url, none.base_url, args))))


if __name__ == "__main__":
    main()
