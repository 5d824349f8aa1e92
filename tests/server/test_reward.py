"""Alignment works: on held-out prompts both methods raise the demo's true reward."""

import asyncio
import json
import math
import statistics
from typing import Any

import pytest

from cdserve.demo import PROMPTS_PATH
from cdserve.demo.reward import sentiment_gold

from .served import Served

PROMPTS = [json.loads(line)["prompt"] for line in PROMPTS_PATH.read_text().splitlines()[:48]]
POLICIES: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "best_of_n": {"method": "best_of_n", "n": 8},
    "blockwise_cd": {"method": "blockwise_cd", "k": 4, "m": 32},
}


@pytest.fixture(scope="module")
async def rewards(server: Served) -> dict[str, list[float]]:
    """The true reward of each prompt's response, by method."""
    at_once = asyncio.Semaphore(8)
    async with server.async_client() as client:

        async def reward(index: int, policy: dict[str, Any]) -> float:
            fields = {"model": "demo", "max_tokens": 200, "seed": 1000 * index}
            body = {**fields, "prompt": PROMPTS[index], "alignment": policy}
            async with at_once:
                answer = await client.post("/v1/completions", json=body)
            return sentiment_gold(PROMPTS[index], answer.json()["choices"][0]["text"])

        return {
            name: await asyncio.gather(*(reward(i, policy) for i in range(len(PROMPTS))))
            for name, policy in POLICIES.items()
        }


@pytest.mark.parametrize("method", ["best_of_n", "blockwise_cd"])
def test_it_raises_the_true_reward(rewards: dict[str, list[float]], method: str) -> None:
    gains = [b - a for a, b in zip(rewards["none"], rewards[method], strict=True)]
    standard_error = statistics.stdev(gains) / math.sqrt(len(gains))
    assert statistics.mean(gains) > 3 * standard_error
