"""Early ends in blockwise decoding: the reward and the length with and without a gain.

In a decision between candidates that have ended and candidates that have not, the final reward of
the former is compared with the value of the latter, which leaves out the decisions still to come.
``continuation_gain`` adds their gain. Held-out prompts on the tiny demo: ground-truth reward,
length of the answers, and the share of ends among the candidates and among the winners of such
decisions, with 95 % intervals over prompts. Differences are paired by prompt, against a gain of 0.

    python benchmarks/early_ends.py --prompts 256 --output benchmarks/results/early_ends.json
"""

import argparse
import asyncio
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demos import demo
from intervals import mean_ci
from models import machine
from openai import AsyncOpenAI
from server import Server

from cdserve.demo.tiny import DEMO_DIR
from cdserve.demo.tiny.reward import sentiment_gold

MAX_TOKENS = 192
GAINS: tuple[float | str, ...] = (0.0, "auto", 0.1, 0.2)
SHAPES = ((8, 32), (4, 32), (8, 16), (4, 16))
"""K and M."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, with the counts of its decisions between ended and unfinished candidates."""

    reward: float
    tokens: int
    ends: dict[str, int] | None


class Evaluation:
    """Answers to prompts, a bounded number of requests at once."""

    def __init__(self, base_url: str, concurrency: int) -> None:
        self._client = AsyncOpenAI(base_url=f"{base_url}/v1", api_key="-", max_retries=0)
        self._slots = asyncio.Semaphore(concurrency)

    async def answers(self, prompts: Sequence[str], policy: dict[str, Any]) -> list[Answer]:
        """One answer per prompt. Policies with the same K and M share their seeds."""

        async def answer(prompt: str) -> Answer:
            seed = zlib.crc32(f"{policy.get('k')}/{policy.get('m')}/{prompt}".encode())
            async with self._slots:
                completion = await self._client.completions.create(
                    model="demo",
                    prompt=prompt,
                    max_tokens=MAX_TOKENS,
                    seed=seed,
                    extra_body={"alignment": policy},
                )
            assert completion.usage is not None
            report = (completion.model_extra or {}).get("alignment") or {}
            return Answer(
                reward=sentiment_gold(prompt, completion.choices[0].text),
                tokens=completion.usage.completion_tokens,
                ends=report.get("ends"),
            )

        return await asyncio.gather(*map(answer, prompts))


def figures(answers: Sequence[Answer], without: Sequence[Answer]) -> dict[str, Any]:
    """Figures of a policy; ``without`` are the answers without a gain to the same prompts."""
    pairs = list(zip(answers, without, strict=True))
    ends = [answer.ends for answer in answers if answer.ends is not None]
    return {
        "reward": mean_ci([answer.reward for answer in answers]),
        "reward_difference": mean_ci([a.reward - b.reward for a, b in pairs]),
        "tokens": mean_ci([answer.tokens for answer in answers]),
        "tokens_difference": mean_ci([a.tokens - b.tokens for a, b in pairs]),
        "ends": {
            key: sum(each[key] for each in ends)
            for key in ("decisions", "candidates", "ended", "selected")
        },
    }


async def measure(base_url: str, prompts: Sequence[str], concurrency: int) -> dict[str, Any]:
    """Figures by policy."""
    evaluation = Evaluation(base_url, concurrency)
    base = await evaluation.answers(prompts, {"method": "none"})
    made = {"base": figures(base, base)}
    show("base", made["base"])
    for k, m in SHAPES:
        without = None
        for gain in GAINS:
            policy = {"method": "blockwise_cd", "k": k, "m": m, "continuation_gain": gain}
            answers = await evaluation.answers(prompts, policy)
            without = without or answers
            name = f"K={k}, M={m}, gain {gain}"
            made[name] = figures(answers, without)
            show(name, made[name])
    return made


def show(name: str, made: dict[str, Any]) -> None:
    """Prints a row of the table: reward and tokens with differences, and the shares of ends."""
    (reward, reward_half), (tokens, tokens_half) = made["reward"], made["tokens"]
    (more, more_half), (longer, longer_half) = made["reward_difference"], made["tokens_difference"]
    ends, shares = made["ends"], "– | –"
    if ends["decisions"]:
        shares = (
            f"{ends['ended'] / ends['candidates']:.2f} | {ends['selected'] / ends['decisions']:.2f}"
        )
    print(
        f"| {name} | {reward:+.3f} ± {reward_half:.3f} | {more:+.3f} ± {more_half:.3f} "
        f"| {tokens:.1f} ± {tokens_half:.1f} | {longer:+.1f} ± {longer_half:.1f} "
        f"| {shares} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--concurrency", type=int, default=16, help="requests at once")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    prompts = demo("tiny").prompts(True)[: args.prompts]
    with Server(DEMO_DIR / "cdserve.yaml") as server:
        made = asyncio.run(measure(server.base_url, prompts, args.concurrency))
    if args.output:
        setting = {"prompts": len(prompts), "max_tokens": MAX_TOKENS, "machine": machine()}
        args.output.write_text(json.dumps({**setting, "policies": made}, indent=2) + "\n")


if __name__ == "__main__":
    main()
