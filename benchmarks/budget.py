"""Long answers under a KL budget: the reward reached, and whether the bound holds.

Blockwise CD (K = 4, M = 8) on the demo, answers of exactly 192 tokens, which would cost 15 nats.
Ground-truth reward of held-out prompts by budget, alone and over a tilted proposal; with each the
mean and the largest bound, and the estimate.

    python benchmarks/budget.py --prompts 128 --output benchmarks/results/budget.json
"""

import asyncio
import statistics
import zlib
from collections.abc import Sequence
from typing import Any

from frontier import arguments, held_out, settings, write
from openai import AsyncOpenAI
from quality import mean_ci
from server import Server

from cdserve.demo.tiny.reward import sentiment_gold

TOKENS = 192
BUDGETS = (0.0, 1.0, 2.0, 4.0, 6.0, 12.0, None)
BLOCKWISE = {"method": "blockwise_cd", "k": 4, "m": 8}
METHODS: dict[str, dict[str, Any]] = {
    "blockwise": BLOCKWISE,
    "over a tilt": {**BLOCKWISE, "proposal": {"method": "tokenwise_cd", "beta": 0.5}},
    "tokenwise": {"method": "tokenwise_cd", "beta": 0.2},
}


async def row(
    client: AsyncOpenAI, prompts: Sequence[str], policy: dict[str, Any], concurrency: int
) -> dict[str, Any]:
    """One answer a prompt: reward with half its 95 % interval, bounds, decisions left out."""
    slots = asyncio.Semaphore(concurrency)

    async def one(prompt: str) -> tuple[float, dict[str, Any]]:
        async with slots:
            made = await client.completions.create(
                model="demo",
                prompt=prompt,
                max_tokens=TOKENS,
                seed=zlib.crc32(prompt.encode()),
                extra_body={"min_tokens": TOKENS, "alignment": policy},
            )
        report = (made.model_extra or {})["alignment"]
        return sentiment_gold(prompt, made.choices[0].text), report["kl"]

    found = await asyncio.gather(*map(one, prompts))
    bounds = [kl["bound"] for _, kl in found]
    return {
        "reward": mean_ci([gold for gold, _ in found]),
        "kl_bound": statistics.mean(bounds),
        "largest_kl_bound": max(bounds),
        "kl_estimate": statistics.mean(kl["estimate"] for _, kl in found),
    }


async def measure(base_url: str, prompts: Sequence[str], concurrency: int) -> dict[str, Any]:
    table: dict[str, Any] = {}
    async with AsyncOpenAI(base_url=f"{base_url}/v1", api_key="-", max_retries=0) as client:
        for method, policy in METHODS.items():
            table[method] = {}
            for budget in BUDGETS:
                asked = policy if budget is None else {**policy, "kl_budget": budget}
                made = await row(client, prompts, asked, concurrency)
                assert budget is None or made["largest_kl_bound"] <= budget + 1e-9
                table[method]["none" if budget is None else f"{budget:g}"] = made
                print(
                    f"{method:12s} budget {budget}: {made['reward'][0]:+.3f} ± "
                    f"{made['reward'][1]:.3f}, bound {made['kl_bound']:.2f}, at most "
                    f"{made['largest_kl_bound']:.3f}",
                    flush=True,
                )
    return table


def main() -> None:
    args = arguments(__doc__, plots=False)
    prompts = held_out(args.prompts)
    with Server(settings()) as server:
        table = asyncio.run(measure(server.base_url, prompts, args.concurrency))
    write(args, prompts, tokens=TOKENS, points=table)


if __name__ == "__main__":
    main()
