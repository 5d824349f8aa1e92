"""The soak's book-keeping: what counts as answered, and what is unexplained."""

import json
import random
from typing import Any

import httpx2
import pytest
from soak_answers import ask, judged
from soak_requests import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Asked, Requests

POLICY = {"method": "best_of_n", "n": 2}
REPORT = {"method": "best_of_n", "score": 0.5, "rewards": {"sentiment": 0.5}, "kl": {"bound": 0.2}}
CHOICE = {"index": 0, "text": " Good.", "logprobs": None, "finish_reason": "stop"}
WHOLE = {"choices": [CHOICE], "usage": {"completion_tokens": 2}, "alignment": REPORT}


def asked(route: str = COMPLETIONS, **fields: Any) -> Asked:
    body = {"alignment": POLICY, "stream": fields.pop("stream", False)}
    return Asked(route, body, POLICY, fields.pop("answers", 1), {}, **fields)


async def outcome(
    request: Asked, content: Any, status: int = 200, **headers: str
) -> tuple[str, str | None]:
    """The outcome of a request that is answered with this."""
    text = content if isinstance(content, str) else json.dumps(content)
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(
            status, text=text, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
    )
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
        return judged(request, await ask(client, request))


def stream(*events: Any, end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + end


async def test_complete_answer_is_judged_answered() -> None:
    assert await outcome(asked(), WHOLE) == ("answered", None)
    chunks = [{"choices": [{**CHOICE, "finish_reason": None}]}, {**WHOLE, "usage": None}]
    assert await outcome(asked(stream=True), stream(*chunks)) == ("answered", None)
    message = {"content": [{"text": "x"}], "stop_reason": "end_turn", "alignment": REPORT}
    assert await outcome(asked(MESSAGES), message) == ("answered", None)


@pytest.mark.parametrize(
    ("request_", "content", "wrong"),
    [
        (asked(answers=2), WHOLE, "choices [0], of 2"),
        (asked(logprobs=True), WHOLE, "choice 0 has no logprobs"),
        (asked(prompt_logprobs=True), WHOLE, "choice 0 has no prompt_logprobs"),
        (asked(), {**WHOLE, "alignment": None}, "no report"),
        (asked(), {**WHOLE, "choices": [{**CHOICE, "finish_reason": "abort"}]}, "ends with"),
        (asked(), json.dumps(WHOLE).replace("0.5", "NaN"), "NaN is not JSON"),
        (asked(stream=True), stream(WHOLE, end=""), "the stream has no end"),
        (asked(stream=True), stream(WHOLE, WHOLE), "ends with ['stop', 'stop']"),
        (asked(RESPONSES, stream=True), stream({"type": "response.created"}), "choices [], of 1"),
        (asked(CHAT, refused=True), WHOLE, "status 200"),
    ],
)
async def test_incomplete_answer_is_judged_unexplained(
    request_: Asked, content: Any, wrong: str
) -> None:
    _, found = await outcome(request_, content)
    assert found is not None
    assert wrong in found


async def test_error_is_explained_only_if_declared() -> None:
    failing = Asked(COMPLETIONS, {}, {**POLICY, "rewards": {"error": 1.0}}, 1, {})
    declared = {"error": {"message": "reward 'error' failed: an injected fault"}}
    assert await outcome(failing, declared, 500) == ("failed", None)
    for request, content in ((asked(), declared), (failing, {"error": {"message": "'cmpl-0'"}})):
        assert (await outcome(request, content, 500))[1] is not None
    assert await outcome(asked(refused=True), declared, 400) == ("refused", None)
    assert (await outcome(asked(), declared, 400))[1] == "status 400"
    assert await outcome(asked(), declared, 503, retry_after="1") == ("refused", None)
    assert (await outcome(asked(), declared, 503))[1] is not None


def test_random_requests_cover_all_routes() -> None:
    requests = Requests(random.Random(1), lora=True)
    drawn = [requests.draw(f"client-{i}") for i in range(400)]
    assert len({one.route for one in drawn}) == 6
    assert {one.body["model"] for one in drawn} == {"demo", "polite"}
    assert any(one.body.get("request_id") for one in drawn)
    json.dumps([[dict(one.body), dict(one.headers)] for one in drawn])
