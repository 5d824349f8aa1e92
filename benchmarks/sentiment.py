"""Best-of-n that blockwise CD equals on the demo: held-out sentiment of film reviews.

Blocks and whole responses are selected by the demo's value head, and the ground truth that no head
learned from judges the answers. One pool of draws per prompt gives the curve of best-of-n for every
n, once by the value head and once by the ground truth itself. Each policy has the n of both curves
with the same ground-truth reward, with 95 % bootstrap intervals over prompts.

    python benchmarks/sentiment.py --output benchmarks/results/sentiment.json
"""

import argparse
import asyncio
import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx2
import numpy as np
from length import Answer, Floats, figures, show
from models import machine
from server import Server

from cdserve.demo import DEMO_DIR, settings
from cdserve.demo.reward import sentiment_gold
from cdserve.evaluation.curves import best_of_n_mean

MAX_TOKENS, TEMPERATURE = 128, 0.8
PART = 16
"""Draws of one request for the pool."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""n of the curves that are printed."""
POLICIES = {f"K={k}, M={m}": {"k": k, "m": m} for m in (32, 16) for k in (2, 4, 8)}


class Experiment:
    """The requests of the experiment, a bounded number at once.

    Args:
        base_url: address of the server.
        prompts: prompts to answer: texts, or lists of chat messages.
        concurrency: requests at once.
    """

    def __init__(self, base_url: str, prompts: Sequence[Any], concurrency: int) -> None:
        self._client = httpx2.AsyncClient(base_url=base_url, timeout=1800)
        self._prompts = prompts
        self._slots = asyncio.Semaphore(concurrency)

    async def pool(self, size: int) -> tuple[Floats, Floats, Floats]:
        """Value, ground truth and tokens of draws from the base, ``[prompts, size]`` each."""

        async def draws(prompt: Any) -> list[tuple[float, float, int]]:
            policies = [
                {"method": "best_of_n", "n": min(PART, size - i), "report": "trace"}
                for i in range(0, size, PART)
            ]
            seeds = [f"pool/{i}" for i in range(len(policies))]
            parts = await asyncio.gather(
                *(self._complete(prompt, *each) for each in zip(seeds, policies, strict=True))
            )
            candidates = [each for part in parts for each in part[1]["trace"][0]["candidates"]]
            return [(c["score"], sentiment_gold("", c["text"]), c["tokens"]) for c in candidates]

        rows = np.array(await asyncio.gather(*map(draws, self._prompts)), np.float64)
        return rows[..., 0], rows[..., 1], rows[..., 2]

    async def answers(self, name: str, policy: dict[str, Any], count: int) -> list[Answer]:
        """Means of ``count`` answers to each prompt."""

        async def answer(prompt: Any, draw: int) -> Answer:
            choice, report = await self._complete(prompt, f"{name}/{draw}", policy)
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            tokens = sum(block["tokens"] for block in _selected(report))
            drawn, bound = report["candidate_tokens"], report["kl"]["bound"]
            return Answer(sentiment_gold("", text), tokens, drawn, bound)

        async def mean(prompt: Any) -> Answer:
            answers = await asyncio.gather(*(answer(prompt, draw) for draw in range(count)))
            return Answer(*map(fmean, zip(*map(astuple, answers), strict=True)))

        policy = {"method": "blockwise_cd", "report": "trace", **policy}
        return list(await asyncio.gather(*map(mean, self._prompts)))

    async def _complete(
        self, prompt: Any, name: str, policy: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The choice and the report of a request."""
        chat = not isinstance(prompt, str)
        body = {
            "messages" if chat else "prompt": prompt,
            **{"model": "demo", "max_tokens": MAX_TOKENS, "temperature": TEMPERATURE},
            **{"seed": zlib.crc32(f"{name}/{prompt}".encode()), "alignment": policy},
        }
        async with self._slots:
            path = "/v1/chat/completions" if chat else "/v1/completions"
            response = await self._client.post(path, json=body)
        content = response.raise_for_status().json()
        return content["choices"][0], content["alignment"]


def _selected(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The selected candidates of a trace."""
    return [c for decision in report["trace"] for c in decision["candidates"] if c["chosen"]]


def curves(scores: Floats, rewards: Floats) -> Floats:
    """Expected reward of best-of-n by the scores, ``[prompts, n]``, for n = 1, 2, ...."""
    sizes = range(1, scores.shape[1] + 1)
    rows = zip(scores, rewards, strict=True)
    return np.array([[best_of_n_mean(score, reward, n) for n in sizes] for score, reward in rows])


async def measure(base_url: str, prompts: Sequence[Any], args: argparse.Namespace) -> Any:
    """The pool's curves, and the figures of every policy."""
    experiment = Experiment(base_url, prompts, args.concurrency)
    values, rewards, tokens = await experiment.pool(args.pool)
    by_value, by_truth = curves(values, rewards), curves(rewards, rewards)
    found: dict[str, Any] = {"tokens_per_draw": float(tokens.mean()), "best_of_n": {}}
    for n in (n for n in SIZES if n <= args.pool):
        row = {"by_value": by_value[:, n - 1].mean(), "by_truth": by_truth[:, n - 1].mean()}
        found["best_of_n"][str(n)] = row
        print(f"best-of-{n}: {row['by_value']:+.3f} by the value head, ", end="")
        print(f"{row['by_truth']:+.3f} by the ground truth", flush=True)
    found["blockwise_cd"] = {}
    for name, policy in POLICIES.items():
        answers = await experiment.answers(name, policy, args.answers)
        row = figures(answers, by_value, tokens.mean(1))
        truth = figures(answers, by_truth, tokens.mean(1))
        row |= {f"{key}_by_truth": truth[key] for key in ("equals_best_of", "equals_best_of_95")}
        found["blockwise_cd"][name] = row
        show(name, row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--pool", type=int, default=64, help="draws from the base per prompt")
    parser.add_argument("--answers", type=int, default=2, help="answers per prompt and policy")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at once")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    lines = (DEMO_DIR / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[: args.prompts]
    prompts = [json.loads(line)["prompt"] for line in lines]
    base = settings("smollm2")
    begun = time.monotonic()
    changes = [*base.changes, "engine.max_num_seqs=128"]
    with Server(base.config, *(part for change in changes for part in ("--set", change))) as server:
        found = asyncio.run(measure(server.base_url, prompts, args))
    setting = {
        **{"prompts": len(prompts), "pool": args.pool, "answers": args.answers},
        **{"max_tokens": MAX_TOKENS, "temperature": TEMPERATURE},
        **{"seconds": round(time.monotonic() - begun)},
        "machine": machine(),
    }
    if args.output:
        args.output.write_text(json.dumps({**setting, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
