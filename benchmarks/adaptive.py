"""Optimal stopping and races of best-of-16 on the tiny demo: ground-truth reward per token drawn.

Best-of-16 answers each held-out prompt with a trace. Since a seed fixes the candidates, the first n
candidates of the trace give the answer of best-of-n: the curve of plain best-of-n. Each policy with
``stop`` or ``race`` is compared with best-of-16 and with the curve at the same share of tokens,
prompt by prompt: mean differences of the reward, with 95 % intervals.

    python benchmarks/adaptive.py --prompts 128 --output benchmarks/results/adaptive.json
"""

import argparse
import asyncio
import json
import math
import statistics
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from intervals import mean_ci
from models import machine
from server import Server

from cdserve.demo.tiny import DEMO_DIR, PROMPTS_PATH
from cdserve.demo.tiny.reward import sentiment_gold

MAX_TOKENS = 192
MOST = 16
STOPS: dict[str, dict[str, float]] = {
    "λ = 0.001": {"gain_per_token": 0.001},
    "λ = 0.003": {"gain_per_token": 0.003},
    "τ = 1.25": {"threshold": 1.25},
}
"""Stop rules; scores are in standard deviations of the reward, around its mean."""
AT_ONCE = (1, 4, 16)
GIVING_UP: dict[str, dict[str, Any]] = {
    **{f"race, δ = {delta:g}": {"race": {"delta": delta}} for delta in (0.003, 0.01, 0.03, 0.06)},
    "speculative, α = 0.5": {"method": "speculative_rejection", "alpha": 0.5, "m": 16},
}
"""Policies that give up responses before their end."""


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        gold: ground-truth reward.
        tokens: tokens of all candidates.
        draws: candidates begun.
        seconds: duration of the request.
        text: text of the answer.
    """

    gold: float
    tokens: int
    draws: int
    seconds: float
    text: str


class Client:
    """Sends completions under a policy, a bounded number at a time."""

    def __init__(self, base_url: str, concurrency: int) -> None:
        self._http = httpx2.AsyncClient(base_url=base_url, timeout=600)
        self._slots = asyncio.Semaphore(concurrency)

    async def answers(
        self, prompts: Sequence[str], **policy: Any
    ) -> list[tuple[Answer, dict[str, Any]]]:
        """An answer to each prompt, with its report."""
        return await asyncio.gather(*(self._answer(prompt, policy) for prompt in prompts))

    async def _answer(self, prompt: str, policy: dict[str, Any]) -> tuple[Answer, dict[str, Any]]:
        body = {
            "model": "demo",
            "prompt": prompt,
            "max_tokens": MAX_TOKENS,
            "seed": zlib.crc32(prompt.encode()),
            "alignment": {"method": "best_of_n", "n": MOST, **policy},
        }
        async with self._slots:
            began = time.monotonic()
            response = await self._http.post("/v1/completions", json=body)
            seconds = time.monotonic() - began
        content = response.raise_for_status().json()
        report, text = content["alignment"], content["choices"][0]["text"]
        answer = Answer(
            sentiment_gold(prompt, text),
            report["candidate_tokens"],
            report.get("draws", {}).get("made", MOST),
            seconds,
            text,
        )
        return answer, report


def best_of(n: int, prompt: str, candidates: Sequence[dict[str, Any]]) -> Answer:
    """The answer of best-of-n from the first n candidates of a trace."""
    first = candidates[:n]
    best = max(first, key=lambda candidate: candidate["score"])
    tokens = sum(candidate["tokens"] for candidate in first)
    return Answer(sentiment_gold(prompt, best["text"]), tokens, n, math.nan, best["text"])


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


def row(answers: Sequence[Answer], curve: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """Figures of a policy; ``curve`` has plain best-of-n for n from 1."""
    most, tokens = curve[-1], sum(answer.tokens for answer in answers)
    plain = on_curve(curve, tokens)
    return {
        "reward": mean_ci([answer.gold for answer in answers]),
        "share_of_tokens": tokens / sum(answer.tokens for answer in most),
        "draws": statistics.fmean(answer.draws for answer in answers),
        "against_most": mean_ci([a.gold - b.gold for a, b in zip(answers, most, strict=True)]),
        "against_curve": mean_ci([a.gold - b for a, b in zip(answers, plain, strict=True)]),
    }


def mean_seconds(answers: Sequence[Answer]) -> float:
    """Mean duration of the requests."""
    return statistics.fmean(answer.seconds for answer in answers)


async def measure(base_url: str, prompts: Sequence[str], concurrency: int) -> dict[str, Any]:
    """Rows by policy."""
    client = Client(base_url, concurrency)
    traced = await client.answers(prompts, report="trace")
    candidates = [report["trace"][0]["candidates"] for _, report in traced]
    curve = [
        [best_of(n, *pair) for pair in zip(prompts, candidates, strict=True)]
        for n in range(1, MOST + 1)
    ]
    rows = {f"best-of-{n}": row(curve[n - 1], curve) for n in (1, 2, 4, 8, MOST)}
    rows[f"best-of-{MOST}"]["seconds"] = mean_seconds([answer for answer, _ in traced])
    for name, stop in STOPS.items():
        texts: list[list[str]] = []
        for at_once in AT_ONCE:
            stopped = await client.answers(prompts, stop=stop, at_once=at_once)
            answers = [answer for answer, _ in stopped]
            figures = row(answers, curve) | {"seconds": mean_seconds(answers)}
            rows[f"{name}, {at_once} at once"] = figures
            texts.append([answer.text for answer in answers])
        differ = sum(len(set(same)) > 1 for same in zip(*texts, strict=True))
        rows[f"{name}, {AT_ONCE[-1]} at once"]["answers_that_differ"] = differ
    for name, policy in GIVING_UP.items():
        answers = [answer for answer, _ in await client.answers(prompts, **policy)]
        rows[name] = row(answers, curve) | {"seconds": mean_seconds(answers)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=256, help="number of held-out prompts")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at the same time")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    lines = PROMPTS_PATH.read_text(encoding="utf-8").splitlines()[: args.prompts]
    prompts = [json.loads(line)["prompt"] for line in lines]
    with Server(DEMO_DIR / "cdserve.yaml", "--set", "rewards.sentiment.standardise=true") as server:
        rows = asyncio.run(measure(server.base_url, prompts, args.concurrency))
    header = ("policy", "reward", "tokens", "draws", "- best-of-16", "- curve", "seconds")
    print("{:22s}  {:14s}  {}  {}  {:14s}  {:14s}  {}".format(*header))
    for name, figures in rows.items():
        cells = [
            f"{mean:+.3f} ± {ci:.3f}"
            for mean, ci in (figures[k] for k in ("reward", "against_most", "against_curve"))
        ]
        print(
            f"{name:22s}  {cells[0]}   {figures['share_of_tokens']:.2f}   {figures['draws']:5.1f}"
            f"  {cells[1]}  {cells[2]}  {figures.get('seconds', math.nan):.2f}"
        )
    if args.output is not None:
        content = {"prompts": len(prompts), "machine": machine(), "policies": rows}
        args.output.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
