"""Optimal stopping and races of best-of-n on a demo: ground-truth reward per token drawn.

Best-of-n for the largest n answers each held-out prompt with a trace. Since a seed fixes the
candidates, the first n candidates of the trace give the answer of best-of-n: the curve of plain
best-of-n. Each policy with ``stop`` or ``race`` is compared with best-of-n for the same n and with
the curve at the same number of tokens, prompt by prompt: mean differences of the reward, with 95 %
intervals.

    python benchmarks/adaptive.py --prompts 128 --output benchmarks/results/adaptive.json
"""

import argparse
import asyncio
import json
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from intervals import mean_ci
from models import machine
from server import Server

from cdserve import demo as smollm2
from cdserve.demo import reward as smollm2_reward
from cdserve.demo import tiny
from cdserve.demo.model import model_dir
from cdserve.demo.tiny import reward as tiny_reward

STOPS: dict[str, dict[str, Any]] = {
    "λ = 0.001, 1 at once": {"stop": {"gain_per_token": 0.001}, "at_once": 1},
    **{
        f"τ = 1.25, {at_once} at once": {"stop": {"threshold": 1.25}, "at_once": at_once}
        for at_once in (1, 4)
    },
}
"""Stop rules; scores are in standard deviations of the reward, around its mean."""


def raced(delta: float, price: float | None = None, at_once: int | None = None) -> dict[str, Any]:
    """A race, with a price per token if one is given, by its name."""
    policy: dict[str, Any] = {"race": {"delta": delta}}
    name = f"race, δ = {delta:g}"
    if price is not None:
        policy |= {"stop": {"gain_per_token": price}, "at_once": at_once}
        name = f"race, λ = {price:g}, {at_once} at once"
    return {name: policy}


POLICIES: dict[int, dict[str, dict[str, Any]]] = {
    16: {
        **STOPS,
        "speculative, α = 0.5": {"method": "speculative_rejection", "alpha": 0.5, "m": 16},
        **raced(0.01),
        **raced(0.03),
        **raced(0.06),
        **raced(0.01, 0.0003, 1),
        **raced(0.01, 0.0006, 1),
        **raced(0.01, 0.001, 1),
        **raced(0.01, 0.0003, 4),
        **raced(0.01, 0.0006, 4),
        **raced(0.01, 0.001, 4),
        **raced(0.01, 0.0006, 16),
        "race, τ = 1.25, 1 at once": {
            **{"race": {"delta": 0.01}, "stop": {"threshold": 1.25}, "at_once": 1}
        },
    },
    64: {
        **raced(0.015),
        **raced(0.003, 0.0002, 4),
        **raced(0.003, 0.0003, 4),
        **raced(0.003, 0.0005, 4),
        **raced(0.003, 0.001, 4),
        **raced(0.003, 0.0003, 16),
    },
}
"""Policies by n, and by name."""


@dataclass(frozen=True)
class Demo:
    """A demo.

    Attributes:
        config: its settings, with further flags.
        prompts: file of its held-out prompts.
        gold: the ground-truth reward of a prompt and a response.
        max_tokens: most tokens of a response.
        temperature: sampling temperature.
    """

    config: tuple[Path, *tuple[str, ...]]
    prompts: Path
    gold: Callable[[str, str], float]
    max_tokens: int
    temperature: float


def demo(name: str) -> Demo:
    """The demo ``tiny`` or ``smollm2``; fetches the model of the latter if it is not cached."""
    if name == "tiny":
        config = (tiny.DEMO_DIR / "cdserve.yaml",)
        return Demo(config, tiny.PROMPTS_PATH, tiny_reward.sentiment_gold, 192, 1.0)
    folder = smollm2.DEMO_DIR
    flags = ("--set", f"model={model_dir()}")
    gold = smollm2_reward.sentiment_gold
    return Demo((folder / "cdserve.yaml", *flags), folder / "prompts.jsonl", gold, 96, 0.8)


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        gold: ground-truth reward.
        tokens: tokens of all candidates.
        draws: candidates begun.
        seconds: duration of the request; 0 for an answer from a trace.
    """

    gold: float
    tokens: int
    draws: int
    seconds: float


class Client:
    """Sends completions under a policy, a bounded number at a time."""

    def __init__(self, base_url: str, demo: Demo, concurrency: int) -> None:
        self._http = httpx2.AsyncClient(base_url=base_url, timeout=1800)
        self._demo = demo
        self._slots = asyncio.Semaphore(concurrency)

    async def answers(
        self, prompts: Sequence[str], n: int, **policy: Any
    ) -> list[tuple[Answer, dict[str, Any]]]:
        """An answer to each prompt, with its report."""
        policy = {"method": "best_of_n", "n": n, **policy}
        return await asyncio.gather(*(self._answer(prompt, policy) for prompt in prompts))

    async def _answer(self, prompt: str, policy: dict[str, Any]) -> tuple[Answer, dict[str, Any]]:
        body = {
            "model": "demo",
            "prompt": prompt,
            "max_tokens": self._demo.max_tokens,
            "temperature": self._demo.temperature,
            "seed": zlib.crc32(prompt.encode()),
            "alignment": policy,
        }
        async with self._slots:
            began = time.monotonic()
            response = await self._http.post("/v1/completions", json=body)
            seconds = time.monotonic() - began
        content = response.raise_for_status().json()
        report, text = content["alignment"], content["choices"][0]["text"]
        answer = Answer(
            self._demo.gold(prompt, text),
            report["candidate_tokens"],
            report.get("draws", {}).get("made", policy["n"]),
            seconds,
        )
        return answer, report


def curve(
    prompts: Sequence[str], reports: Sequence[dict[str, Any]], demo: Demo
) -> list[list[Answer]]:
    """Answers of best-of-n for n = 1, 2, ..., from traces of best-of-n for the largest n."""
    answers = []
    for prompt, report in zip(prompts, reports, strict=True):
        candidates = report["trace"][0]["candidates"]
        best, tokens, row = candidates[0], 0, []
        for draws, candidate in enumerate(candidates, 1):
            best = max(best, candidate, key=lambda drawn: drawn["score"])
            tokens += candidate["tokens"]
            row.append(Answer(demo.gold(prompt, best["text"]), tokens, draws, 0.0))
        answers.append(row)
    return [list(column) for column in zip(*answers, strict=True)]


def on_curve(curve: Sequence[Sequence[Answer]], tokens: float) -> list[float]:
    """Reward of each prompt at a number of tokens in total, between two neighbours of the curve."""
    totals = [sum(answer.tokens for answer in answers) for answers in curve]
    above = next((i for i, total in enumerate(totals) if total >= tokens), len(totals) - 1)
    below = max(0, above - 1)
    span = totals[above] - totals[below]
    share = (tokens - totals[below]) / span if span else 1.0
    share = min(1.0, max(0.0, share))
    pairs = zip(curve[below], curve[above], strict=True)
    return [(1 - share) * low.gold + share * high.gold for low, high in pairs]


def figures(answers: Sequence[Answer], curve: Sequence[Sequence[Answer]], n: int) -> dict[str, Any]:
    """Figures of a policy; ``curve`` has plain best-of-n for n from 1."""
    most, tokens = curve[n - 1], sum(answer.tokens for answer in answers)
    plain = on_curve(curve, tokens)
    return {
        "reward": mean_ci([answer.gold for answer in answers]),
        "share_of_tokens": tokens / sum(answer.tokens for answer in most),
        "draws": statistics.fmean(answer.draws for answer in answers),
        "against_most": mean_ci([a.gold - b.gold for a, b in zip(answers, most, strict=True)]),
        "against_curve": mean_ci([a.gold - b for a, b in zip(answers, plain, strict=True)]),
        "seconds": statistics.fmean(answer.seconds for answer in answers),
    }


def show(name: str, row: dict[str, Any]) -> None:
    """Prints the figures of a policy."""
    cells = [
        f"{mean:+.3f} ± {ci:.3f}"
        for mean, ci in (row[key] for key in ("reward", "against_most", "against_curve"))
    ]
    print(
        f"{name:28s}  {cells[0]}   {row['share_of_tokens']:.3f}   {row['draws']:5.1f}"
        f"  {cells[1]}  {cells[2]}  {row['seconds']:.2f}",
        flush=True,
    )


async def measure(
    client: Client, demo: Demo, prompts: Sequence[str], most: Sequence[int]
) -> dict[str, Any]:
    """Figures by n and policy."""
    traced = await client.answers(prompts, max(most), report="trace")
    plain = curve(prompts, [report for _, report in traced], demo)
    rows: dict[str, dict[str, Any]] = {}
    for n in most:
        print(f"{f'n = {n}':28s}  {'reward':14s}  tokens  draws  - best-of-{n:<5d}  - curve")
        rows[str(n)] = {}
        for draws in (4, 8, 16, 32, 64):
            if draws <= n:
                rows[str(n)][f"best-of-{draws}"] = figures(plain[draws - 1], plain, n)
        for name, row in rows[str(n)].items():
            show(name, row)
        for name, policy in POLICIES[n].items():
            answers = [answer for answer, _ in await client.answers(prompts, n, **policy)]
            rows[str(n)][name] = figures(answers, plain, n)
            show(name, rows[str(n)][name])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", choices=("tiny", "smollm2"), default="tiny", help="the demo")
    parser.add_argument("--prompts", type=int, default=128, help="number of held-out prompts")
    parser.add_argument(
        "--most",
        type=int,
        nargs="+",
        choices=sorted(POLICIES),
        default=sorted(POLICIES),
        help="numbers of responses, n",
    )
    parser.add_argument("--concurrency", type=int, default=16, help="requests at the same time")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    chosen = demo(args.demo)
    lines = chosen.prompts.read_text(encoding="utf-8").splitlines()[: args.prompts]
    prompts = [json.loads(line)["prompt"] for line in lines]
    with Server(*chosen.config, "--set", "rewards.sentiment.standardise=true") as server:
        client = Client(server.base_url, chosen, args.concurrency)
        rows = asyncio.run(measure(client, chosen, prompts, args.most))
    if args.output is not None:
        content = {
            "demo": args.demo,
            "prompts": len(prompts),
            "machine": machine(),
            "policies": rows,
        }
        args.output.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
