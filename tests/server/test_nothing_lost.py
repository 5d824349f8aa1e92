"""Clients that leave take their candidates with them; many at once are all answered."""

import asyncio
import random
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from .served import Served
from .wire import AHEAD, BEST_OF_N, BLOCKWISE, PROMPT, STEPS, check_report, complete

RACE = {**BEST_OF_N, "race": {"delta": 0.02, "every": 4}}

LONG = {"model": "demo", "max_tokens": 1000, "ignore_eos": True}
TALK = [{"role": "user", "content": PROMPT}]
RESPONSE = {"input": PROMPT, "max_output_tokens": 1000}
SEARCHES = pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])


@SEARCHES
@pytest.mark.parametrize(
    ("route", "more"),
    [
        ("/v1/completions", {"prompt": PROMPT}),
        ("/v1/completions", {"prompt": PROMPT, "n": 2}),
        ("/v1/completions", {"prompt": [PROMPT, PROMPT]}),
        ("/v1/responses", RESPONSE),
    ],
)
def test_leaving_a_stream_drops_its_candidates(
    server: Served, http: httpx2.Client, route: str, policy: dict[str, Any], more: dict[str, Any]
) -> None:
    """Best-of-n is silent then but for comments; blockwise is between two blocks."""
    body = {**LONG, **more, "stream": True, "alignment": policy}
    before = server.metric("generation_tokens_total")
    with http.stream("POST", route, json=body) as answer:
        lines = answer.iter_lines()
        block = "event: response.output_text.delta" if more is RESPONSE else "data: "
        wanted = block if policy is BLOCKWISE else ": "
        assert any(line.startswith(wanted) for line in lines)
        server.wait_for_tokens(before)
    server.wait_until_idle()


@SEARCHES
@pytest.mark.parametrize(
    ("route", "more"),
    [
        ("/v1/completions", {"prompt": PROMPT}),
        ("/v1/completions", {"prompt": PROMPT, "n": 2}),
        ("/v1/completions", {"prompt": [PROMPT, PROMPT]}),
        ("/v1/chat/completions", {"messages": TALK}),
        ("/v1/chat/completions", {"messages": TALK, "n": 2}),
        ("/v1/chat/completions/batch", {"messages": [TALK, TALK]}),
        ("/v1/responses", RESPONSE),
    ],
)
async def test_leaving_before_the_answer_drops_its_candidates(
    server: Served, route: str, policy: dict[str, Any], more: dict[str, Any]
) -> None:
    body = {**LONG, **more, "alignment": policy}
    async with server.async_client() as client:
        with server.paused():  # so that it has not ended when the client leaves
            request = asyncio.create_task(client.post(route, json=body))
            await asyncio.to_thread(server.wait_for_candidates, 1)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
    await asyncio.to_thread(server.wait_until_idle)


async def test_random_disconnects_leak_no_engine_requests(server: Served, client: OpenAI) -> None:
    rng = random.Random(0)

    async def leave(asynchronous: httpx2.AsyncClient, policy: dict[str, Any], steps: int) -> None:
        body = {**LONG, "prompt": PROMPT, "stream": rng.random() < 0.5, "alignment": policy}
        request = asyncio.create_task(_read_all(asynchronous, body))
        for _ in range(steps):  # of the server, while the request goes on
            await asynchronous.get("/health")
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)

    async with server.async_client() as asynchronous:
        for _ in range(3):
            searches = [BEST_OF_N, BLOCKWISE, RACE, {**STEPS, "subtrees": 2}, AHEAD]
            policies = [rng.choice(searches) for _ in range(6)]
            leaving = (leave(asynchronous, policy, rng.randrange(100)) for policy in policies)
            await asyncio.gather(*leaving)
    await asyncio.to_thread(server.wait_until_idle)
    answer = await asyncio.to_thread(complete, client, BLOCKWISE)
    check_report(answer.alignment, BLOCKWISE, answer.usage.completion_tokens)


@SEARCHES
def test_long_seeded_prompts_are_answered(client: OpenAI, policy: dict[str, Any]) -> None:
    """The candidates' prompts together are more tokens than the engine takes in a step."""
    prompt = list(range(6, 1006))
    answers = [complete(client, policy, prompt=prompt, max_tokens=8) for _ in range(2)]
    assert answers[0].choices == answers[1].choices


async def test_mixed_concurrent_requests_are_answered(server: Served) -> None:
    policies = [None, BEST_OF_N, BLOCKWISE, {**BLOCKWISE, "k": 3, "m": 20}] * 6
    bodies = [
        {
            **{"model": "demo", "prompt": PROMPT, "seed": i, "max_tokens": 30 + 3 * i},
            **{"ignore_eos": True, "alignment": policy},
        }
        for i, policy in enumerate(policies)
    ]
    async with server.async_client() as client:
        answers = await asyncio.gather(
            *(client.post("/v1/completions", json=body) for body in bodies)
        )
    for body, policy, answer in zip(bodies, policies, answers, strict=True):
        made = answer.raise_for_status().json()
        assert made["usage"]["completion_tokens"] == body["max_tokens"]
        if policy is None:
            assert "alignment" not in made
        else:
            check_report(made["alignment"], policy, body["max_tokens"])
    await asyncio.to_thread(server.wait_until_idle)


async def test_mixed_concurrent_streams_are_answered(server: Served) -> None:
    policies = [None, BEST_OF_N, BLOCKWISE] * 4
    async with server.async_client() as client:
        streams = await asyncio.gather(
            *(
                _read_all(
                    client,
                    {
                        **{"model": "demo", "prompt": PROMPT, "seed": i, "max_tokens": 60},
                        **{"stream": True, "alignment": policy},
                    },
                )
                for i, policy in enumerate(policies)
            )
        )
    for policy, text in zip(policies, streams, strict=True):
        assert text.endswith("data: [DONE]\n\n")
        assert ('"alignment":' in text) == (policy is not None)


async def _read_all(client: httpx2.AsyncClient, body: dict[str, Any]) -> str:
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        return "".join([text async for text in answer.aiter_text()])
