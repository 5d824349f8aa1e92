"""Cost of a race per step: candidate tokens per second relative to best-of-n without a race.

The race's δ is so small that no response is given up, and EOS is ignored, so both arms draw the
same number of tokens. Each round runs both arms on the same prompts, in alternating order. The
ratio of a round is that of its rates; 1 means that the race costs nothing.

    python benchmarks/race_cost.py --rounds 15 --output benchmarks/results/race_cost.json
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

from models import machine
from overhead import Client, prompt_ids
from server import Server

from cdserve.demo.tiny import DEMO_DIR

N = 16
TINY = 1e-300
"""A δ below the smallest probability that the race computes."""
ARMS: dict[str, dict[str, Any]] = {
    "best_of_n": {"method": "best_of_n", "n": N},
    "race": {"method": "best_of_n", "n": N, "race": {"delta": TINY}},
}
PROMPT_TOKENS = [24, 33, 41, 57, 64, 78]


async def rate(
    client: Client, policy: dict[str, Any], prompts: list[list[int]], tokens: int
) -> float:
    """Candidate tokens per second of all prompts at once.

    Raises:
        AssertionError: a response was given up, or ended early.
    """
    arm = {"model": "demo", "alignment": policy}
    start = time.perf_counter()
    answers = await asyncio.gather(*(client.complete(arm, prompt) for prompt in prompts))
    elapsed = time.perf_counter() - start
    counts = [answer["alignment"]["candidate_tokens"] for answer in answers]
    assert all(count == N * tokens for count in counts), counts
    return sum(counts) / elapsed


async def measure(server: Server, rounds: int, tokens: int, concurrency: int) -> dict[str, Any]:
    """Median rates, and the median and quartiles of the ratio over rounds."""
    runs: list[dict[str, float]] = []
    client = Client(server, tokens)
    for i in range(rounds + 1):
        prompts = [prompt_ids(PROMPT_TOKENS, seed=i * 1000 + c) for c in range(concurrency)]
        order = list(ARMS)[:: 1 if i % 2 else -1]
        rates = {arm: await rate(client, ARMS[arm], prompts, tokens) for arm in order}
        if i:  # the first round warms up
            runs.append(rates)
    ratios = [rates["race"] / rates["best_of_n"] for rates in runs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "concurrency": concurrency,
        **{f"{arm}_tokens_per_s": statistics.median(rates[arm] for rates in runs) for arm in ARMS},
        "ratio": middle,
        "quartiles": [low, high],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15, help="rounds, at least 2")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per candidate")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("flags", nargs="*", help="flags of the server, such as -- --block-size 64")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds must be at least 2")
    results: list[dict[str, Any]] = []
    with Server(DEMO_DIR / "cdserve.yaml", *args.flags) as server:
        for concurrency in args.concurrency:
            row = asyncio.run(measure(server, args.rounds, args.tokens, concurrency))
            results.append(row)
            print(json.dumps(row), flush=True)
    if args.output:
        content = {
            "n": N,
            "tokens": args.tokens,
            "rounds": args.rounds,
            "machine": machine(),
            "results": results,
        }
        args.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
