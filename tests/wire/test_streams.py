"""Streams: a chunk per block as it is accepted, the report at the end, the format on the wire."""

from typing import Any

import httpx2
import pytest
from openai import OpenAI

from tests.server.served import Served
from tests.server.wire import (
    BEST_OF_N,
    BLOCKWISE,
    PROMPT,
    Ask,
    chat,
    check_report,
    complete,
    events,
    joined,
    text_of,
)

SEARCHES = pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])
ROUTES = pytest.mark.parametrize("ask", [complete, chat])
FIVE_BLOCKS = {"max_tokens": 80, "ignore_eos": True}
TOOL = {"type": "function", "function": {"name": "agree"}}
BLOCK = 16 * 14
"""Characters of a block at most: a token of the demo has up to 14."""


@SEARCHES
@ROUTES
def test_stream_matches_the_whole_answer(client: OpenAI, ask: Ask, policy: dict[str, Any]) -> None:
    whole = ask(client, policy)
    chunks = list(ask(client, policy, stream=True))
    assert joined(chunks) == text_of(whole.choices[0])
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


@ROUTES
def test_blockwise_sends_one_chunk_per_block(client: OpenAI, ask: Ask) -> None:
    chunks = list(ask(client, BLOCKWISE, stream=True, **FIVE_BLOCKS))
    texts = [text_of(choice) for chunk in chunks for choice in chunk.choices]
    assert sum(1 for text in texts if text) == 5


@SEARCHES
@pytest.mark.parametrize("stop", [False, True])
def test_stream_with_tools_has_one_token_per_chunk(
    client: OpenAI, policy: dict[str, Any], stop: bool
) -> None:
    fields: dict[str, Any] = {"tools": [TOOL], "logprobs": True}
    if stop:
        text = text_of(chat(client, policy, **fields).choices[0])
        fields["stop"] = [text[40:44]]
    whole = chat(client, policy, **fields)
    chunks = list(chat(client, policy, **fields, stream=True))
    deltas = [choice for chunk in chunks for choice in chunk.choices][1:]
    assert joined(chunks) == text_of(whole.choices[0])
    assert [token for delta in deltas for token in delta.token_ids] == whole.choices[0].token_ids
    assert all(len(delta.token_ids) == len(delta.logprobs.content) == 1 for delta in deltas)
    assert [row for delta in deltas for row in delta.logprobs.content] == (
        whole.choices[0].logprobs.content
    )
    assert deltas[-1].finish_reason == whole.choices[0].finish_reason
    assert deltas[-1].stop_reason == whole.choices[0].stop_reason
    assert chunks[-1].alignment == whole.alignment


@ROUTES
def test_stream_has_each_decision_with_its_block(client: OpenAI, ask: Ask) -> None:
    policy = {**BLOCKWISE, "report": "trace"}
    chunks = list(ask(client, policy, stream=True, **FIVE_BLOCKS))
    report = chunks[-1].alignment
    made, text = [], ""
    for chunk in chunks:
        made += getattr(chunk, "alignment_decisions", [])
        text += text_of(chunk.choices[0])
        taken = [c["text"] for one in made for c in one["candidates"] if c["chosen"]]
        assert "".join(taken).startswith(text)
    assert made == [{"choice": 0, **decision} for decision in report["trace"]]
    assert not any(
        hasattr(chunk, "alignment_decisions") for chunk in ask(client, BLOCKWISE, stream=True)
    )


@pytest.mark.parametrize(
    "policy",
    [BLOCKWISE, BEST_OF_N, {"method": "tokenwise_cd", "beta": 0.5}],
    ids=lambda p: p["method"],
)
def test_trace_names_the_choice_of_each_decision(client: OpenAI, policy: dict[str, Any]) -> None:
    asked = {**policy, "report": "trace"}
    prompts = [PROMPT, "Film review: The Velvet Promise."]
    chunks = list(complete(client, asked, prompt=prompts, n=2, stream=True))
    (report,) = (chunk.alignment for chunk in chunks if hasattr(chunk, "alignment"))
    made: list[list[dict[str, Any]]] = [[], [], [], []]
    for chunk in chunks:
        for decision in getattr(chunk, "alignment_decisions", []):
            made[decision.pop("choice")].append(decision)
    assert made == [choice["trace"] for choice in report["choices"]]


@ROUTES
def test_each_block_is_sent_once_accepted(server: Served, client: OpenAI, ask: Ask) -> None:
    """Later blocks wait at the gate until the client has received those before them."""
    policy, text, chunks = {**BLOCKWISE, "rewards": {"gate": 1.0}}, "", 0
    with server.gate.closed(above=BLOCK):
        for chunk in ask(client, policy, stream=True, max_tokens=160, ignore_eos=True):
            text, chunks = text + text_of(chunk.choices[0]), chunks + 1
            server.gate.allow(len(text) + BLOCK)
    assert len(text) > 2 * BLOCK
    assert chunks >= 10


@ROUTES
def test_best_of_n_sends_its_text_in_one_chunk(client: OpenAI, ask: Ask) -> None:
    chunks = list(ask(client, BEST_OF_N, stream=True))
    assert sum(1 for chunk in chunks if text_of(chunk.choices[0])) == 1


@SEARCHES
@ROUTES
def test_report_is_on_the_last_chunk_with_choices(
    client: OpenAI, ask: Ask, policy: dict[str, Any]
) -> None:
    options = {"include_usage": True}
    chunks = list(ask(client, policy, stream=True, stream_options=options))
    with_report = [chunk for chunk in chunks if hasattr(chunk, "alignment")]
    assert with_report == [[chunk for chunk in chunks if chunk.choices][-1]]
    assert chunks[-1].choices == []
    check_report(with_report[0].alignment, policy, chunks[-1].usage.completion_tokens)


def test_stream_with_report_none_has_no_report(client: OpenAI) -> None:
    chunks = complete(client, {**BLOCKWISE, "report": "none"}, stream=True)
    assert not any(hasattr(chunk, "alignment") for chunk in chunks)


def test_last_chunk_has_the_trace(client: OpenAI) -> None:
    *_, last = complete(client, {**BLOCKWISE, "report": "trace"}, stream=True)
    assert len(last.alignment["trace"]) == last.alignment["decisions"]


def test_continuous_usage_grows_with_the_blocks(client: OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = complete(client, BLOCKWISE, stream=True, stream_options=options, **FIVE_BLOCKS)
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == [16, 32, 48, 64, 80, 80]


@SEARCHES
@pytest.mark.parametrize(
    ("route", "prompt"),
    [
        ("/v1/completions", {"prompt": PROMPT}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}),
    ],
)
def test_stream_frames_are_server_sent_events_with_constant_fields(
    http: httpx2.Client, route: str, prompt: dict[str, Any], policy: dict[str, Any]
) -> None:
    body = {"model": "demo", **prompt, "max_tokens": 40, "stream": True, "alignment": policy}
    with http.stream("POST", route, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = "".join(answer.iter_text())
    frames = text.split("\n\n")
    assert frames.pop() == ""
    assert [frame for frame in frames if not frame.startswith(("data: {", ": "))] == [frames[-1]]
    assert frames[-1] == "data: [DONE]"
    chunks = events(frames)
    for constant in ("id", "object", "created", "model"):
        assert len({chunk[constant] for chunk in chunks}) == 1
    assert chunks[0]["id"].startswith(("cmpl-", "chatcmpl-"))
