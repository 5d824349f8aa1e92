"""Silent streams get comments, which clients ignore."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx2
import pytest
from anthropic import Anthropic
from openai import OpenAI
from vllm.benchmarks.lib.endpoint_request_func import (
    RequestFuncInput,
    async_request_openai_chat_completions,
    async_request_openai_completions,
)

from tests.server.gate import OPEN
from tests.server.served import Served
from tests.server.wire import PROMPT, chat, complete, joined, text_of
from tests.waiting import HANG_SECONDS

POLICIES = {
    "before the first chunk": {"method": "best_of_n", "n": 2, "rewards": {"gate": 1.0}},
    "between chunks": {"method": "blockwise_cd", "k": 2, "m": 16, "rewards": {"gate": 1.0}},
}
SILENT = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
TALK = [{"role": "user", "content": PROMPT}]
FIELDS = {"max_tokens": 48, "ignore_eos": True, "seed": 7}
BLOCK = 16 * 14
"""Maximum number of characters per block: a token of the demo has up to 14."""
COMMENT = ": keep-alive\n\n"
SILENCE = 0.5
"""Seconds per block that the gate holds a stream, over two of the server's ``keep_alive``."""


@contextmanager
def held(server: Served) -> Iterator[None]:
    """Holds each block at the gate for ``SILENCE``."""
    ended = threading.Event()

    def allow() -> None:
        for blocks in range(4):
            if not ended.wait(SILENCE):
                server.gate.allow(blocks * BLOCK)
        server.gate.allow(OPEN)

    with server.gate.closed():
        opener = threading.Thread(target=allow)
        opener.start()
        try:
            yield
        finally:
            ended.set()
            opener.join()


def test_silent_stream_gets_comments(server: Served, http: httpx2.Client) -> None:
    body = {"model": "demo", "prompt": PROMPT, "stream": True, "max_tokens": 160}
    body |= {"ignore_eos": True, "alignment": POLICIES["between chunks"]}
    text = ""
    with server.gate.closed(), http.stream("POST", "/v1/completions", json=body) as answer:
        chunks = answer.iter_text()
        while text != 3 * COMMENT:
            text += next(chunks)
            assert (3 * COMMENT).startswith(text)
        server.gate.allow(BLOCK)
        while not ("data: " in text and text.endswith(2 * COMMENT)):
            text += next(chunks)
        server.gate.allow(OPEN)
        text += "".join(chunks)
    *events, rest = text.split("\n\n")
    assert rest == ""
    assert {event for event in events if event.startswith(":")} == {COMMENT.strip(), ":"}
    assert all(event.startswith((":", "data: ")) for event in events)
    assert events[-1] == "data: [DONE]"


@SILENT
@pytest.mark.parametrize(
    ("route", "function", "ask"),
    [
        ("/v1/completions", async_request_openai_completions, complete),
        ("/v1/chat/completions", async_request_openai_chat_completions, chat),
    ],
    ids=["completions", "chat"],
)
def test_vllm_load_generator_reads_a_silent_stream(
    server: Served,
    client: OpenAI,
    policy: dict[str, Any],
    route: str,
    function: Callable[..., Any],
    ask: Callable[..., Any],
) -> None:
    prompt = {"prompt": PROMPT} if ask is complete else {"messages": TALK}
    request = RequestFuncInput(
        prompt=PROMPT,
        api_url=server.base_url + route,
        prompt_len=1,
        output_len=48,
        model="demo",
        extra_body={"alignment": policy, **FIELDS, **prompt},
    )

    async def send() -> Any:
        async with aiohttp.ClientSession() as session:
            return await function(request, session)

    with held(server):
        output = asyncio.run(send())
    assert output.success, output.error
    assert output.output_tokens == 48
    assert output.generated_text == text_of(ask(client, policy, **FIELDS, **prompt).choices[0])


@SILENT
@pytest.mark.parametrize("ask", [complete, chat])
def test_openai_client_reads_a_silent_stream(
    server: Served, client: OpenAI, policy: dict[str, Any], ask: Callable[..., Any]
) -> None:
    with held(server):
        chunks = list(ask(client, policy, stream=True, **FIELDS))
    assert joined(chunks) == text_of(ask(client, policy, **FIELDS).choices[0])
    assert chunks[-1].alignment["method"] == policy["method"]


@SILENT
def test_openai_client_reads_a_silent_response(
    server: Served, client: OpenAI, policy: dict[str, Any]
) -> None:
    extra = {"alignment": policy, "ignore_eos": True}
    with held(server):
        events = list(
            client.responses.create(
                model="demo", input=PROMPT, max_output_tokens=48, stream=True, extra_body=extra
            )
        )
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text


@SILENT
def test_anthropic_client_reads_a_silent_message(server: Served, policy: dict[str, Any]) -> None:
    anthropic = Anthropic(
        base_url=server.base_url, api_key="none", max_retries=0, timeout=HANG_SECONDS
    )
    request: dict[str, Any] = {"model": "demo", "messages": TALK, "max_tokens": 48}
    extra = {"alignment": policy, "ignore_eos": True}
    with (
        anthropic,
        held(server),
        anthropic.messages.stream(**request, extra_body=extra) as stream,
    ):
        message = stream.get_final_message()
    assert message.content[0].text
