"""The guard ``threshold``: what a response below it becomes, in every API."""

import json
import re
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.server.served import Served
from tests.server.wire import BEST_OF_N, PROMPT, Ask, chat, complete
from tests.wire.test_metrics import changes, read
from tests.wire.test_stopping import text_of

REFUSAL = "Sorry, I have no good answer to this."
OUT_OF_REACH = 1e6
TALK = [{"role": "user", "content": PROMPT}]
ROUTES = pytest.mark.parametrize("ask", [complete, chat])
BODIES = pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/completions", {"prompt": PROMPT}),
        ("/v1/chat/completions", {"messages": TALK}),
        ("/v1/chat/completions/batch", {"messages": [TALK, TALK]}),
        ("/v1/responses", {"input": PROMPT}),
        ("/v1/messages", {"messages": TALK}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)


def guarded(score: float, on_reject: str | None = None, **fields: Any) -> dict[str, Any]:
    """A policy with a guard."""
    effect = {} if on_reject is None else {"on_reject": on_reject}
    return {**BEST_OF_N, "threshold": {"score": score, **effect}, **fields}


def post(http: httpx2.Client, route: str, body: dict[str, Any], policy: Any) -> httpx2.Response:
    """An answer of at most 16 tokens."""
    limit = "max_output_tokens" if route.endswith("responses") else "max_tokens"
    return http.post(route, json={"model": "demo", limit: 16, "alignment": policy, **body})


@ROUTES
def test_guard_returns_the_best_response_and_says_whether_it_passed(
    client: OpenAI, ask: Ask
) -> None:
    plain = ask(client, BEST_OF_N)
    score = plain.alignment["score"]
    for threshold, accepted in ((score - 0.01, True), (score + 0.01, False)):
        answer = ask(client, guarded(threshold))
        assert answer.alignment["accepted"] is accepted
        assert text_of(answer) == text_of(plain)
        assert answer.alignment["candidates"] == BEST_OF_N["n"]
    assert "accepted" not in plain.alignment


@pytest.mark.parametrize("on_reject", ["refuse", "error"])
def test_accepted_response_is_returned_whatever_on_reject_says(
    client: OpenAI, on_reject: str
) -> None:
    answer = complete(client, guarded(-OUT_OF_REACH, on_reject))
    assert answer.alignment["accepted"] is True
    assert text_of(answer) == text_of(complete(client, BEST_OF_N))


@ROUTES
def test_refusal_replaces_a_response_below_the_threshold(client: OpenAI, ask: Ask) -> None:
    answer = ask(client, guarded(OUT_OF_REACH, "refuse"))
    assert text_of(answer) == REFUSAL
    assert answer.choices[0].finish_reason == "stop"
    assert answer.alignment["accepted"] is False
    assert 0 < answer.usage.completion_tokens != answer.alignment["candidate_tokens"]


@ROUTES
def test_refusal_is_streamed_with_the_report(client: OpenAI, ask: Ask) -> None:
    chunks = list(ask(client, guarded(OUT_OF_REACH, "refuse"), stream=True))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    pieces = [c.text if hasattr(c, "text") else c.delta.content or "" for c in choices]
    assert "".join(pieces) == REFUSAL
    assert [c.finish_reason for c in choices if c.finish_reason] == ["stop"]
    (report,) = [chunk.alignment for chunk in chunks if hasattr(chunk, "alignment")]
    assert report["accepted"] is False


def test_refusal_has_the_logprobs_of_a_certain_text(client: OpenAI) -> None:
    completion = complete(client, guarded(OUT_OF_REACH, "refuse"), logprobs=1)
    assert set(completion.choices[0].logprobs.token_logprobs) == {0.0}
    turn = chat(client, guarded(OUT_OF_REACH, "refuse"), logprobs=True)
    assert {row.logprob for row in turn.choices[0].logprobs.content} == {0.0}


@BODIES
def test_every_api_returns_the_refusal(
    http: httpx2.Client, route: str, body: dict[str, Any]
) -> None:
    answer = post(http, route, body, guarded(OUT_OF_REACH, "refuse"))
    assert answer.status_code == 200
    assert REFUSAL in answer.text
    assert answer.json()["alignment"]["accepted"] is False


@BODIES
def test_every_api_fails_with_a_422_that_names_the_field(
    http: httpx2.Client, route: str, body: dict[str, Any]
) -> None:
    before = read(http)
    answer = post(http, route, body, guarded(OUT_OF_REACH, "error"))
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert "alignment.threshold accepts scores from 1e+06" in error["message"]
    assert error["param"] == "alignment.threshold"
    rejections = changes(http, before)["cdserve_guard_rejections_total"]
    (labels,) = rejections
    assert labels == 'method="best_of_n",on_reject="error"'


def test_error_tells_apart_a_score_just_below_the_threshold(client: OpenAI) -> None:
    score = complete(client, {**BEST_OF_N, "rewards": {"constant": 1.0}}).alignment["score"]
    policy = guarded(score + 1e-7, "error", rewards={"constant": 1.0})
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        complete(client, policy)
    numbers = re.search(r"is (\S+); .* scores from (\S+)", caught.value.body["message"])
    assert numbers is not None
    assert float(numbers[1]) < float(numbers[2]) == pytest.approx(score, abs=1e-6)


@ROUTES
def test_error_of_a_stream_is_its_last_event_and_not_logged(
    client: OpenAI, ask: Ask, server: Served
) -> None:
    tracebacks = len(server.logged("Traceback"))
    with pytest.raises(openai.APIError, match=r"alignment\.threshold") as caught:
        list(ask(client, guarded(OUT_OF_REACH, "error"), stream=True))
    assert caught.value.body["code"] == 422
    assert len(server.logged("Traceback")) == tracebacks


def test_error_of_an_anthropic_stream_is_an_api_error(http: httpx2.Client) -> None:
    body = {"messages": TALK, "stream": True}
    answer = post(http, "/v1/messages", body, guarded(OUT_OF_REACH, "error"))
    error = json.loads(answer.text.split("event: error\ndata: ")[1].splitlines()[0])["error"]
    assert error["type"] == "api_error"
    assert "alignment.threshold" in error["message"]
    assert "code" not in error


def test_guard_judges_each_choice(client: OpenAI) -> None:
    scores = [c["score"] for c in complete(client, BEST_OF_N, n=3).alignment["choices"]]
    threshold = sum(sorted(scores)[:2]) / 2
    answer = complete(client, guarded(threshold, "refuse"), n=3)
    refused = [choice.text == REFUSAL for choice in answer.choices]
    assert refused == [score < threshold for score in scores]
    assert answer.alignment["accepted"] is False


def test_score_and_retry_stops_at_the_first_response_that_passes(client: OpenAI) -> None:
    retry = guarded(-OUT_OF_REACH, "error", stop={"threshold": -OUT_OF_REACH}, at_once=1)
    report = complete(client, retry).alignment
    assert report["accepted"] is True
    assert report["draws"] == {"made": 1, "allowed": 4}


CHAT_TOOL = {"type": "function", "function": {"name": "agree", "parameters": {"type": "object"}}}
TOOL = {"type": "function", "name": "agree", "parameters": {"type": "object"}}
ANTHROPIC_TOOL = {"name": "agree", "input_schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("route", "body"),
    [
        *(
            (
                "/v1/chat/completions",
                {"messages": TALK, "tools": [CHAT_TOOL], "tool_choice": choice},
            )
            for choice in ("required", {"type": "function", "function": {"name": "agree"}})
        ),
        *(
            ("/v1/responses", {"input": PROMPT, "tools": [TOOL], "tool_choice": choice})
            for choice in ("required", {"type": "function", "name": "agree"})
        ),
        *(
            ("/v1/messages", {"messages": TALK, "tools": [ANTHROPIC_TOOL], "tool_choice": choice})
            for choice in ({"type": "any"}, {"type": "tool", "name": "agree"})
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusal_in_place_of_a_forced_tool_call_is_rejected(
    http: httpx2.Client, route: str, body: dict[str, Any]
) -> None:
    answer = post(http, route, body, guarded(OUT_OF_REACH, "refuse"))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "alignment.threshold.on_reject"


def test_refusal_replaces_a_voluntary_tool_call(http: httpx2.Client) -> None:
    body = {"messages": TALK, "tools": [CHAT_TOOL], "tool_choice": "auto"}
    answer = post(http, "/v1/chat/completions", body, guarded(OUT_OF_REACH, "refuse"))
    assert answer.json()["choices"][0]["message"]["content"] == REFUSAL


@pytest.mark.parametrize(
    ("policy", "param"),
    [
        ({**BEST_OF_N, "threshold": 0.5}, "alignment.threshold"),
        ({**BEST_OF_N, "threshold": {}}, "alignment.threshold.score"),
        (guarded(0.0, "retry"), "alignment.threshold.on_reject"),
        (
            {"method": "blockwise_cd", "k": 2, "m": 8, "threshold": {"score": 0}},
            "alignment.threshold",
        ),
    ],
)
def test_invalid_guard_is_refused_by_its_field(
    http: httpx2.Client, policy: dict[str, Any], param: str
) -> None:
    answer = post(http, "/v1/completions", {"prompt": PROMPT}, policy)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
