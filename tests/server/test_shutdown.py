"""SIGTERM: what is under way ends, within the limit or with an error; nothing new is taken in."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx2

from .served import Served, demo_settings
from .wire import BEST_OF_N, BLOCKWISE, PROMPT

TALK = [{"role": "user", "content": PROMPT}]
LONG = {"model": "demo", "max_tokens": 1500, "ignore_eos": True}
LATE: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 4},
    "/v1/chat/completions": {"messages": TALK, "max_tokens": 4},
    "/v1/chat/completions/batch": {"messages": [TALK], "max_tokens": 4},
    "/v1/responses": {"input": PROMPT, "max_output_tokens": 4},
    "/v1/messages": {"messages": TALK, "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": TALK},
    "/v1/alignment/score": {"prompt": PROMPT, "responses": ["Good."]},
}


def settings() -> dict[str, Any]:
    made = demo_settings(presets={}, members={})
    made["rewards"]["gate"] = {
        **{"kind": "python", "callable": "tests.server.gate:gated", "timeout": 600},
    }
    return made


async def test_requests_beyond_the_shutdown_limit_are_answered_and_the_server_ends(
    tmp_path: Path,
) -> None:
    """The engine is stopped: nothing of it ends by itself."""
    asked: list[dict[str, Any]] = [
        {"alignment": BEST_OF_N},
        {"alignment": BLOCKWISE},
        {"alignment": {"method": "tokenwise_cd", "beta": 0.5}},
        {"alignment": BEST_OF_N, "stream": True},
        {"alignment": BLOCKWISE, "stream": True},
    ]
    with Served(settings(), tmp_path, ["--shutdown-timeout", "1"]) as served:
        async with served.async_client() as http:
            body = {**LONG, "prompt": PROMPT}
            with served.paused():
                running = [
                    asyncio.create_task(http.post("/v1/completions", json=body | one))
                    for one in asked
                ]
                await asyncio.to_thread(served.wait_for_candidates, 1)
                os.kill(served.pid, signal.SIGTERM)
                answers = await asyncio.gather(*running)
        for one, answer in zip(asked, answers, strict=True):
            assert answer.status_code == (200 if one.get("stream") else 503)
            assert "this server is shutting down" in answer.text
        assert await asyncio.to_thread(served.wait) == 0


async def test_draining_server_refuses_requests_and_finishes_scores(
    tmp_path: Path,
) -> None:
    with Served(settings(), tmp_path, ["--shutdown-timeout", "600"]) as served:
        async with served.async_client() as http:
            with served.gate.closed():
                score = LATE["/v1/alignment/score"] | {"rewards": {"gate": 1.0}}
                held = asyncio.create_task(http.post("/v1/alignment/score", json=score))
                await asyncio.to_thread(served.gate.until_wait, 1)
                os.kill(served.pid, signal.SIGTERM)
                while (await _ask(http, "/v1/completions", None)).status_code == 200:
                    pass  # the signal has not arrived yet
                for route in LATE:
                    for policy in (None, BEST_OF_N):
                        refused = await _ask(http, route, policy)
                        assert refused.status_code == 503, (route, refused.text)
                        assert refused.headers["retry-after"] == "1"
                        assert "this server is shutting down" in refused.text
            assert (await held).raise_for_status().json()["scores"][0]["score"] == 5.0
        assert await asyncio.to_thread(served.wait) == 0
        assert "Traceback" not in served.log()


async def _ask(http: httpx2.AsyncClient, route: str, policy: Any) -> httpx2.Response:
    body = {"model": "demo", **LATE[route]}
    if policy is not None and "score" not in route and "count" not in route:
        body["alignment"] = policy
    return await http.post(route, json=body)
