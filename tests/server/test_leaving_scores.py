"""Clients that leave while texts of theirs are being scored."""

import asyncio
import random
from typing import Any

import pytest

from .served import Served
from .wire import PROMPT

WORDS = " The film is a quiet story about a harbour, and it takes its time." * 60


@pytest.mark.parametrize("reward", ["sentiment", "fluent"])
async def test_clients_that_leave_while_texts_are_scored_keep_the_engine_alive(
    server: Served, reward: str
) -> None:
    """A step may write what it computes into a table that has been removed by then."""
    rng = random.Random(reward)
    body: dict[str, Any] = {"prompt": PROMPT, "rewards": {reward: 1.0}, "per_token": True}
    async with server.async_client() as client:
        for i in range(20):
            texts = [f"{i}.{j}{WORDS}" for j in range(4)]  # none of them is in the prefix cache
            request = asyncio.create_task(
                client.post("/v1/alignment/score", json=body | {"responses": texts})
            )
            await asyncio.sleep(rng.random() / 4)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        answer = await client.post("/v1/alignment/score", json=body | {"responses": ["Good."]})
    assert answer.raise_for_status().json()["scores"][0]["per_token"][reward]
    await asyncio.to_thread(server.wait_until_idle)
