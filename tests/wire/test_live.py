"""Streams with ``report: "live"``, which show candidates under way."""

from typing import Any

import pytest
from openai import OpenAI

from tests.server.served import Served
from tests.server.wire import BEST_OF_N, BLOCKWISE, Ask, chat, complete, text_of

GATED = {"rewards": {"gate": 1.0}, "report": "live"}


@pytest.mark.parametrize("ask", [complete, chat])
@pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda policy: policy["method"])
def test_live_stream_shows_candidates_before_their_decision(
    server: Served, client: OpenAI, ask: Ask, policy: dict[str, Any]
) -> None:
    """Scoring waits at the gate until the client has seen the candidates."""
    seen: list[dict[str, Any]] = []
    decisions: list[dict[str, Any]] = []
    with server.gate.closed():
        for chunk in ask(client, {**policy, **GATED}, stream=True, max_tokens=16, ignore_eos=True):
            if live := getattr(chunk, "alignment_candidates", []):
                assert not chunk.choices
                assert not decisions
                (drawn,) = live
                assert (drawn["choice"], drawn["draw"]) == (0, 0)
                seen = drawn["candidates"]
                if all(candidate["tokens"] == 16 for candidate in seen):
                    server.gate.allow(10**9)
            decisions += getattr(chunk, "alignment_decisions", [])
    (decision,) = decisions
    expected = [(candidate["text"], candidate["tokens"]) for candidate in decision["candidates"]]
    assert [(candidate["text"], candidate["tokens"]) for candidate in seen] == expected
    assert {candidate["score"] for candidate in seen} == {None}  # the gate reads texts


def test_live_report_equals_a_trace(client: OpenAI) -> None:
    answers = [complete(client, {**BLOCKWISE, "report": name}) for name in ("live", "trace")]
    live, trace = ((text_of(answer.choices[0]), answer.alignment) for answer in answers)
    assert live == trace


def test_trace_does_not_show_candidates_under_way(server: Served, client: OpenAI) -> None:
    policy = {**BLOCKWISE, "rewards": {"gate": 1.0}, "report": "trace"}
    with server.gate.closed():
        stream = complete(client, policy, stream=True, max_tokens=16)
        server.gate.until_wait(1)
        server.gate.allow(10**9)
        assert not any(hasattr(chunk, "alignment_candidates") for chunk in stream)
