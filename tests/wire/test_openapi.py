"""What ``/openapi.json`` allows is answered as it says; more bodies with ``FUZZ_EXAMPLES=2000``."""

import json
import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.served import Served
from tests.server.wire import PROMPT
from tests.waiting import HANG_SECONDS

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150")) // 5
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BATCH = "/v1/chat/completions/batch"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
SCORE = "/v1/alignment/score"
FETCHED = ("_url", "image", "audio", "video", "file")
"""Parts of messages that vLLM would fetch from anywhere."""
FATAL = ("refusal",)
"""Parts of a response's input that vLLM 0.32 answers with a 500, with or without a policy."""
TALK = [{"role": "user", "content": PROMPT}]
USUAL: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": PROMPT},
    CHAT: {"messages": TALK},
    BATCH: {"messages": [TALK, TALK]},
    RESPONSES: {"input": PROMPT},
    MESSAGES: {"messages": TALK, "model": "demo"},
    SCORE: {"prompt": PROMPT, "responses": ["a fine one"]},
}
at_random = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def document(server: Served) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.base_url}/openapi.json")


def usable(value: Any) -> bool:
    return not any(word in json.dumps(value) for word in (*FETCHED, *FATAL))


def check(document: schemathesis.BaseSchema, path: str, body: Any) -> int:
    case = document[path]["POST"].Case(body=body, media_type="application/json")
    answer = case.call_and_validate(checks=CHECKS, timeout=HANG_SECONDS)
    status: int = answer.status_code
    return status


@pytest.mark.parametrize("path", ["/v1/alignment", "/v1/models"])
def test_get_routes_answer_as_documented(document: schemathesis.BaseSchema, path: str) -> None:
    answer = document[path]["GET"].Case().call_and_validate(checks=CHECKS, timeout=HANG_SECONDS)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", USUAL)
@at_random
@given(data=st.data())
def test_random_bodies_are_answered_as_documented(
    document: schemathesis.BaseSchema, path: str, data: st.DataObject
) -> None:
    """Of the schema's, with few of its fields: of all at once, one is always wrong."""
    drawn = data.draw(document[path]["POST"].as_strategy()).body
    names = data.draw(st.lists(st.sampled_from(sorted(drawn)), max_size=3)) if drawn else []
    body = USUAL[path] | {name: drawn[name] for name in names if usable(drawn[name])}
    if path != SCORE:
        body["max_output_tokens" if path == RESPONSES else "max_tokens"] = 4
    check(document, path, body)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    "policy",
    [
        None,
        *({"method": "best_of_n", "n": 2, "report": r} for r in ("none", "summary", "trace")),
        {"method": "blockwise_cd", "k": 2, "m": 4, "kl_budget": 1, "deadline_ms": 60_000},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_completions_and_chats_are_answered_as_documented(
    document: schemathesis.BaseSchema, path: str, policy: Any, stream: bool, n: int
) -> None:
    body = {
        **USUAL[path],
        "max_tokens": 8,
        "n": n,
        "stream": stream,
        "logprobs": 1 if path == COMPLETIONS else True,
    }
    assert check(document, path, {**body, "alignment": policy} if policy else body) == 200


def test_scores_are_answered_as_documented(document: schemathesis.BaseSchema) -> None:
    body = {**USUAL[SCORE], "per_token": True, "rewards": {"sentiment": 1, "sentiment_gold": 0.5}}
    assert check(document, SCORE, body) == 200
