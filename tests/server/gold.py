"""Ground-truth rewards of what a server of the demo answers, by policy."""

import asyncio
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cdserve.demo.tiny import PROMPTS_PATH
from cdserve.demo.tiny.reward import sentiment_gold

from .served import Served


def held_out(count: int) -> list[str]:
    """The demo's first prompts that training never saw."""
    lines = PROMPTS_PATH.read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line)["prompt"] for line in lines]


async def true_rewards(
    server: Served, prompts: Sequence[str], policies: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[float]]:
    """The true reward of each prompt's response, by policy, 24 requests at once."""
    at_once = asyncio.Semaphore(24)
    async with server.async_client() as client:

        async def reward(index: int, policy: Mapping[str, Any]) -> float:
            fields = {"model": "demo", "max_tokens": 200, "seed": 1000 * index}
            body = {**fields, "prompt": prompts[index], "alignment": policy}
            async with at_once:
                answer = await client.post("/v1/completions", json=body)
            return sentiment_gold(prompts[index], answer.json()["choices"][0]["text"])

        return {
            name: await asyncio.gather(*(reward(i, policy) for i in range(len(prompts))))
            for name, policy in policies.items()
        }


def assert_better(plain: Sequence[float], aligned: Sequence[float]) -> None:
    """The mean gain, prompt by prompt, is three standard errors or more above 0."""
    gains = [b - a for a, b in zip(plain, aligned, strict=True)]
    assert statistics.mean(gains) > 3 * statistics.stdev(gains) / math.sqrt(len(gains))
