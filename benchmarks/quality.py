"""Ground-truth reward of plain, blockwise and best-of-n decoding on the demo.

Held-out prompts through an unmodified OpenAI client. Prints means with 95 % confidence intervals,
over prompts, and the win-rate against the base under the policy's own reward; best-of-n's is
n / (n + 1). Each answer is compared with several of the base, drawn afresh for every policy.

    python benchmarks/quality.py --prompts 256 --output benchmarks/results/quality.json
"""

import argparse
import asyncio
import json
import math
import statistics
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from server import Server

from cdserve.demo.tiny import DEMO_DIR, PROMPTS_PATH
from cdserve.demo.tiny.reward import sentiment_gold

MAX_TOKENS = 192
POLICIES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "blockwise_cd k=4 m=32": {"method": "blockwise_cd", "k": 4, "m": 32},
    "best_of_n n=2": {"method": "best_of_n", "n": 2},
    "best_of_n n=4": {"method": "best_of_n", "n": 4},
    "best_of_n n=8": {"method": "best_of_n", "n": 8},
}


@dataclass
class Answer:
    """One answer with its ground-truth reward and its value at the end."""

    gold: float
    value: float | None
    """None of a policy that draws by no reward."""
    tokens: int
    candidate_tokens: int
    kl_bound: float
    kl_estimate: float


class Evaluation:
    """Runs policies over prompts, a bounded number of requests at once."""

    def __init__(self, base_url: str, concurrency: int) -> None:
        self._client = AsyncOpenAI(base_url=f"{base_url}/v1", api_key="-", max_retries=0)
        self._slots = asyncio.Semaphore(concurrency)

    async def run(
        self, prompts: Sequence[str], policy: dict[str, Any] | None, draw: str
    ) -> list[Answer]:
        """One answer a prompt; ``draw`` and the prompt make its seed."""
        return await asyncio.gather(
            *(self._answer(p, policy, zlib.crc32(f"{draw}/{p}".encode())) for p in prompts)
        )

    async def _answer(self, prompt: str, policy: dict[str, Any] | None, seed: int) -> Answer:
        async with self._slots:
            made = await self._client.completions.create(
                model="demo",
                prompt=prompt,
                max_tokens=MAX_TOKENS,
                seed=seed,
                logprobs=0,  # for the KL estimate
                # Plain answers as best-of-1, for their value; it equals plain decoding bit for bit.
                extra_body={"alignment": policy or {"method": "best_of_n", "n": 1}},
            )
        report = made.model_extra["alignment"]
        return Answer(
            gold=sentiment_gold(prompt, made.choices[0].text),
            value=report["score"],
            tokens=made.usage.completion_tokens,
            candidate_tokens=report["candidate_tokens"],
            kl_bound=report["kl"]["bound"],
            kl_estimate=report["kl"]["estimate"],
        )


def row(answers: Sequence[Answer], bases: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """A policy's figures, against several answers of the base to each prompt."""
    wins = [
        statistics.mean((a.value > b.value) + 0.5 * (a.value == b.value) for b in drawn)
        for a, drawn in zip(answers, zip(*bases, strict=True), strict=True)
    ]
    return {
        "gold": mean_ci([a.gold for a in answers]),
        "value": mean_ci([a.value for a in answers]),
        "win_rate": mean_ci(wins),
        "kl_bound": statistics.mean(a.kl_bound for a in answers),
        "tokens": statistics.mean(a.tokens for a in answers),
        "candidate_tokens": statistics.mean(a.candidate_tokens for a in answers),
    }


def mean_ci(values: Sequence[float]) -> list[float]:
    """Mean and half the width of its 95 % interval."""
    return [statistics.mean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))]


async def evaluate(
    base_url: str, prompts: Sequence[str], draws: int, concurrency: int
) -> dict[str, Any]:
    evaluation = Evaluation(base_url, concurrency)
    rows: dict[str, Any] = {}
    for name, policy in POLICIES.items():
        bases = [await evaluation.run(prompts, None, f"{name}/base/{i}") for i in range(draws)]
        rows[name] = row(await evaluation.run(prompts, policy, name), bases)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--draws", type=int, default=4, help="answers of the base to each prompt")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    lines = PROMPTS_PATH.read_text(encoding="utf-8").splitlines()[: args.prompts]
    prompts = [json.loads(line)["prompt"] for line in lines]
    with Server(DEMO_DIR / "cdserve.yaml") as server:
        rows = asyncio.run(evaluate(server.base_url, prompts, args.draws, args.concurrency))
    print(f"{len(prompts)} prompts            gold reward       value            win-rate vs base")
    for name, made in rows.items():
        (gold, gold_ci), (value, value_ci) = made["gold"], made["value"]
        share, share_ci = made["win_rate"]
        print(
            f"{name:24s} {gold:+.3f} ± {gold_ci:.3f}   {value:+.3f} ± {value_ci:.3f}   "
            f"{share:.3f} ± {share_ci:.3f}   {made['tokens']:.0f} of "
            f"{made['candidate_tokens']:.0f} tokens, KL ≤ {made['kl_bound']:.2f}"
        )
    if args.output:
        made = {
            "prompts": len(prompts),
            "draws": args.draws,
            "max_tokens": MAX_TOKENS,
            "policies": rows,
        }
        args.output.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
