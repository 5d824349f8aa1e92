"""Gates of blockwise decoding on the tiny demo: ground-truth reward per token drawn, and seconds.

A gate draws two scouts per block, and others, all at once or two at a time, until one reaches τ.
Policies are compared with plain K = 8 and with the curve of plain K at the same number of tokens,
prompt by prompt: mean differences of the reward, with 95 % intervals.

    python benchmarks/gate.py --prompts 128 --output benchmarks/results/gate.json
"""

import argparse
import asyncio
import json
import statistics
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from demos import demo
from intervals import mean_ci
from models import machine
from server import Server

from cdserve.demo.tiny import DEMO_DIR
from cdserve.demo.tiny.reward import sentiment_gold

MAX_TOKENS = 192
PLAIN = (2, 3, 4, 6, 8)
MOST = PLAIN[-1]
THRESHOLDS = (0.2, 0.4)
"""τ, in units of the reward, whose mean over the base's answers is about 0."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        gold: ground-truth reward.
        tokens: tokens of all candidates.
        seconds: duration of the request.
        kl_bound: upper bound on the KL divergence, in nats.
        decisions: number of blocks.
        searched: blocks with all candidates.
    """

    gold: float
    tokens: int
    seconds: float
    kl_bound: float
    decisions: int
    searched: int


class Client:
    """Sends completions under a policy, a bounded number at a time."""

    def __init__(self, base_url: str, concurrency: int) -> None:
        self._http = httpx2.AsyncClient(base_url=base_url, timeout=600)
        self._slots = asyncio.Semaphore(concurrency)

    async def answers(self, prompts: Sequence[str], **policy: Any) -> list[Answer]:
        """An answer to each prompt; a prompt has the same seed under all policies."""
        return await asyncio.gather(*(self._answer(prompt, policy) for prompt in prompts))

    async def _answer(self, prompt: str, policy: dict[str, Any]) -> Answer:
        body = {
            "model": "demo",
            "prompt": prompt,
            "max_tokens": MAX_TOKENS,
            "seed": zlib.crc32(prompt.encode()),
            "alignment": policy,
        }
        async with self._slots:
            began = time.monotonic()
            response = await self._http.post("/v1/completions", json=body)
            seconds = time.monotonic() - began
        content = response.raise_for_status().json()
        report = content["alignment"]
        return Answer(
            gold=sentiment_gold(prompt, content["choices"][0]["text"]),
            tokens=report["candidate_tokens"],
            seconds=seconds,
            kl_bound=report["kl"]["bound"],
            decisions=report["decisions"],
            searched=report.get("gate", {}).get("searched", report["decisions"]),
        )


def policies(m: int) -> dict[str, dict[str, Any]]:
    """Policies by name that are compared with plain K."""
    blocks = {"method": "blockwise_cd", "m": m, "k": MOST}
    gates = {f"gate, τ = {tau:g}": {"threshold": tau} for tau in THRESHOLDS}
    slow = {f"{name}, 2 at once": {**gate, "at_once": 2} for name, gate in gates.items()}
    return {
        "K = 8, 4, 2, 2, ...": {**blocks, "k": [8, 4, 2]},
        **{name: {**blocks, "gate": gate} for name, gate in (gates | slow).items()},
    }


def on_curve(curve: Sequence[Sequence[Answer]], tokens: int) -> list[float]:
    """Reward of each prompt at a number of tokens in total, between two neighbours of the curve."""
    totals = [sum(answer.tokens for answer in answers) for answers in curve]
    above = next((i for i, total in enumerate(totals) if total >= tokens), len(totals) - 1)
    below = max(0, above - 1)
    span = totals[above] - totals[below]
    share = min(1.0, max(0.0, (tokens - totals[below]) / span)) if span else 1.0
    pairs = zip(curve[below], curve[above], strict=True)
    return [(1 - share) * low.gold + share * high.gold for low, high in pairs]


def row(answers: Sequence[Answer], curve: Sequence[Sequence[Answer]]) -> dict[str, Any]:
    """Figures of a policy; ``curve`` has the answers of plain K for the numbers of ``PLAIN``."""
    tokens = sum(answer.tokens for answer in answers)
    plain = on_curve(curve, tokens)
    return {
        "reward": mean_ci([answer.gold for answer in answers]),
        "tokens": tokens / len(answers),
        "share_of_tokens": tokens / sum(answer.tokens for answer in curve[-1]),
        "against_most": mean_ci([a.gold - b.gold for a, b in zip(answers, curve[-1], strict=True)]),
        "against_curve": mean_ci([a.gold - b for a, b in zip(answers, plain, strict=True)]),
        "searched": sum(a.searched for a in answers) / sum(a.decisions for a in answers),
        "kl_bound": statistics.fmean(answer.kl_bound for answer in answers),
        "seconds": statistics.fmean(answer.seconds for answer in answers),
    }


async def measure(
    base_url: str, prompts: Sequence[str], m: int, concurrency: int
) -> dict[str, dict[str, Any]]:
    """Rows by policy, for blocks of ``m`` tokens."""
    client = Client(base_url, concurrency)
    plain = {"method": "blockwise_cd", "m": m}
    curve = [await client.answers(prompts, **plain, k=k) for k in PLAIN]
    rows = {f"K = {k}": row(answers, curve) for k, answers in zip(PLAIN, curve, strict=True)}
    for name, policy in policies(m).items():
        rows[name] = row(await client.answers(prompts, **policy), curve)
    return rows


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Prints the rows as a table."""
    print(f"reward, share of tokens, - K = {MOST}, - curve, searched, KL bound, seconds")
    for name, figures in rows.items():
        reward, most, curve = (
            f"{mean:+.3f} ± {ci:.3f}"
            for mean, ci in (figures[k] for k in ("reward", "against_most", "against_curve"))
        )
        print(
            f"{name:24s}  {reward}  {figures['share_of_tokens']:.2f}  {most}  {curve}  "
            f"{figures['searched']:.2f}  {figures['kl_bound']:.2f}  {figures['seconds']:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=128, help="number of held-out prompts")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at the same time")
    parser.add_argument("--m", type=int, default=16, help="block length in tokens")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    prompts = demo("tiny").prompts(True)[: args.prompts]
    with Server(DEMO_DIR / "cdserve.yaml") as server:
        rows = asyncio.run(measure(server.base_url, prompts, args.m, args.concurrency))
    show(rows)
    if args.output is not None:
        content = {"prompts": len(prompts), "m": args.m, "machine": machine(), "policies": rows}
        args.output.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
