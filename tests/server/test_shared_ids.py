"""Requests under way with one ``X-Request-Id``: retries, and services that pass one trace id on."""

import asyncio
from typing import Any

import pytest

from .served import Served
from .wire import KINDS, PROMPT

SHARED = {"x-request-id": "trace-1"}
POLICIES: dict[str, Any] = {
    "none": None,
    **KINDS,
    "poisson": {"method": "best_of_poisson", "mu": 2.0},
    "cards": {"method": "cards", "m": 16, "r_star": 0.0, "max_draws": 4},
}
TALK = [{"role": "user", "content": PROMPT}]
ROUTES: dict[str, tuple[str, str, Any]] = {
    # name: (path, the field with the prompt, a prompt)
    "completions": ("/v1/completions", "prompt", PROMPT),
    "prompts": ("/v1/completions", "prompt", [PROMPT, PROMPT]),
    "chat": ("/v1/chat/completions", "messages", TALK),
    "batch": ("/v1/chat/completions/batch", "messages", [TALK, TALK]),
    "responses": ("/v1/responses", "input", PROMPT),
    "messages": ("/v1/messages", "messages", TALK),
}
policies = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
SOME = ("none", "best_of_n", "blockwise")
some_policies = pytest.mark.parametrize("policy", [POLICIES[n] for n in SOME], ids=SOME)
routes = pytest.mark.parametrize("route", ROUTES)
streams = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def asking(route: str, policy: Any, tokens: int, stream: bool = False) -> dict[str, Any]:
    """Arguments of a request for ``tokens`` tokens, no fewer where the API can say so."""
    path, field, prompt = ROUTES[route]
    length = "max_output_tokens" if route == "responses" else "max_tokens"
    body = {"model": "demo", field: prompt, length: tokens, "alignment": policy, "stream": stream}
    if route != "messages":
        body["ignore_eos"] = True
    if route == "batch":
        del body["stream"]
    return {"url": path, "json": body, "headers": SHARED}


def whole(text: str, policy: Any, stream: bool) -> bool:
    """Whether an answer is there to its end, with a report where there is a policy."""
    ended = not stream or "[DONE]" in text or "response.completed" in text or "_stop" in text
    return ended and '"error"' not in text and ('"kl":{"bound"' in text) == (policy is not None)


@policies
@streams
async def test_requests_with_one_id_are_both_answered_under_every_method(
    server: Served, policy: Any, stream: bool
) -> None:
    await _all_answered(server, "completions", policy, stream)


@routes
@some_policies
@streams
async def test_requests_with_one_id_are_both_answered_on_every_route(
    server: Served, route: str, policy: Any, stream: bool
) -> None:
    await _all_answered(server, route, policy, stream and route != "batch")


async def _all_answered(server: Served, route: str, policy: Any, stream: bool) -> None:
    async with server.async_client() as client:
        request = asking(route, policy, 24, stream)
        answers = await asyncio.gather(*(client.post(**request) for _ in range(3)))
    assert all(whole(one.raise_for_status().text, policy, stream) for one in answers)
    await asyncio.to_thread(server.wait_until_idle)


@some_policies
@pytest.mark.parametrize(
    ("route", "stream"),
    [
        *(("completions", False), ("completions", True), ("prompts", False)),
        *(("chat", True), ("batch", False), ("responses", True)),
    ],
)
async def test_disconnect_leaves_the_request_with_the_same_id(
    server: Served, route: str, policy: Any, stream: bool
) -> None:
    """The twin has begun when the client leaves: its stream has a first line."""
    leaves = asking(route, policy, 900, stream)
    stays = asking("chat" if route == "batch" else route, policy, 200, stream=True)
    drawn = server.metric("generation_tokens_total")
    async with server.async_client() as client:
        leaving = asyncio.create_task(client.post(**leaves))
        await asyncio.to_thread(server.wait_for_tokens, drawn)
        async with client.stream("POST", **stays) as staying:
            lines = aiter(staying.aiter_lines())
            await anext(lines)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            text = "\n".join([line async for line in lines])
    assert whole(text, policy, stream=True)
    await asyncio.to_thread(server.wait_until_idle)


@pytest.mark.parametrize("name", ["best_of_n", "blockwise", "tokenwise", "mixing"])
async def test_deadline_leaves_the_request_with_the_same_id(server: Served, name: str) -> None:
    policy, drawn = POLICIES[name], server.metric("generation_tokens_total")
    async with server.async_client() as client:
        free = asyncio.create_task(client.post(**asking("completions", policy, 300)))
        await asyncio.to_thread(server.wait_for_tokens, drawn)
        hurried = asking("completions", {**policy, "deadline_ms": 20}, 1500)
        cut = (await client.post(**hurried)).raise_for_status().json()
        kept = (await free).raise_for_status().json()
    assert cut["alignment"]["deadline"]["passed"]
    assert cut["usage"]["completion_tokens"] < 1500
    assert kept["usage"]["completion_tokens"] == 300
