"""Engines killed under load: a reward model's, with which what is declared happens; the base's."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from .served import Served, demo_settings

PROMPTS = [f"Film review: {name}." for name in ("Dune", "Heat", "Alien", "Big", "Up", "Her")]
OTHERS = ("none", "sentiment")
DEAD = {"needed": 500, "skipped": 200, "decisive": 200}
"""The status of requests for each reward once its engine is dead."""


@pytest.fixture(scope="module")
def mortal(reward_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo beside a reward model that three rewards share, under each policy."""
    settings = demo_settings(presets={}) | {"members": {}}
    engine = {"max_model_len": 512, "kv_cache_memory_bytes": 64 << 20}
    model = {"kind": "reward_model", "output": "sentiment", "engine": engine}
    for name, policy in zip(DEAD, ("error", "skip", "base"), strict=True):
        settings["rewards"][name] = {**model, "model": str(reward_model), "on_failure": policy}
    with Served(settings, tmp_path_factory.mktemp("mortal")) as served:
        yield served


async def test_death_of_a_reward_model_has_its_declared_consequence(mortal: Served) -> None:
    reward_model, _ = mortal.engines()
    asked = [(name, prompt) for prompt in PROMPTS for name in (*OTHERS, *DEAD)]
    async with mortal.async_client() as http:
        assert (await http.get("/health")).status_code == 200
        drawn = await asyncio.to_thread(mortal.metric, "generation_tokens_total")
        running = [asyncio.create_task(_ask(http, *one)) for one in asked]
        await asyncio.to_thread(mortal.wait_for_tokens, since=drawn)
        os.kill(reward_model, signal.SIGKILL)
        for (name, _), answer in zip(asked, await asyncio.gather(*running), strict=True):
            assert answer.status_code in {200, DEAD.get(name, 200)}
        after = {name: await _ask(http, name, PROMPTS[0]) for name in (*OTHERS, *DEAD)}
        # Some requests fail now: whoever started it is to start it anew.
        assert (await http.get("/health")).status_code == 503
    assert {name: answer.status_code for name, answer in after.items()} == {
        **dict.fromkeys(OTHERS, 200),
        **DEAD,
    }
    assert "reward 'needed' failed" in after["needed"].json()["error"]["message"]
    for name in ("skipped", "decisive"):
        assert after[name].json()["alignment"]["failed"] == {name: 1}
    mortal.wait_until_idle()


async def test_death_of_the_engine_ends_the_server(mortal: Served) -> None:
    """The last test of this server: the engine that all requests need is killed under load."""
    (engine,) = mortal.engines()
    async with mortal.async_client() as http:
        with mortal.paused():  # so that none has ended when it dies
            asked = [_ask(http, "sentiment", prompt, 1500) for prompt in PROMPTS]
            running = list(map(asyncio.create_task, asked))
            await asyncio.to_thread(mortal.wait_for_candidates, 4 * len(PROMPTS))
            os.kill(engine, signal.SIGKILL)
        await asyncio.to_thread(mortal.wait_until_unhealthy)
        for answer in await asyncio.gather(*running):
            assert answer.status_code == 500
            assert "EngineCore" in answer.json()["error"]["message"]
    assert await asyncio.to_thread(mortal.wait) == 1
    assert "cdserve: the engine has died" in mortal.log()


async def _ask(
    http: httpx2.AsyncClient, name: str, prompt: str, max_tokens: int = 32
) -> httpx2.Response:
    policy: dict[str, Any] = {"method": "best_of_n", "n": 4, "rewards": {"sentiment": 1, name: 1}}
    if name == "none":
        policy = {"method": "none"}
    body = {"model": "demo", "prompt": prompt, "max_tokens": max_tokens, "alignment": policy}
    body["ignore_eos"] = max_tokens > 32
    return await http.post("/v1/completions", json=body)
