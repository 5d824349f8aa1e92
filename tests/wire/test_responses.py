"""OpenAI's Responses API under policies: the answers of the other routes, by its own client."""

from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.server.wire import BEST_OF_N, BLOCKWISE, assert_close, complete

ASKED = "Please write a review of the travel lawn mower."
POLICIES = {
    "best_of_n": BEST_OF_N,
    "blockwise": BLOCKWISE,
    "tokenwise": {"method": "tokenwise_cd", "beta": 0.3},
    "mixing": {"method": "logit_mixing", "weights": {"base": 0.5, "tuned": 0.5}},
}
EVERY = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def respond(client: OpenAI, policy: Any = None, **fields: Any) -> Any:
    """A response of at most 48 tokens, seeded."""
    request = {"model": "demo", "input": ASKED, "max_output_tokens": 48} | fields
    extra = {"seed": 7, **({} if policy is None else {"alignment": policy})}
    return client.responses.create(**request, extra_body=extra)


def deltas(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


@EVERY
def test_response_matches_the_completion_of_its_prompt(
    client: OpenAI, http: httpx2.Client, policy: dict[str, Any]
) -> None:
    talk = {"model": "demo", "messages": [{"role": "user", "content": ASKED}]}
    prompt = http.post("/tokenize", json={**talk, "add_special_tokens": True}).json()["tokens"]
    ours, theirs = respond(client, policy), complete(client, policy, prompt=prompt)
    assert ours.output_text == theirs.choices[0].text
    assert_close(ours.alignment, theirs.alignment)
    assert ours.usage.input_tokens == theirs.usage.prompt_tokens
    assert ours.usage.output_tokens == theirs.usage.completion_tokens
    cut = theirs.choices[0].finish_reason == "length"
    assert ours.status == ("incomplete" if cut else "completed")


def test_response_without_a_policy_is_answered_by_vllm(client: OpenAI) -> None:
    answer = respond(client)
    assert answer.output_text
    assert not hasattr(answer, "alignment")


@EVERY
def test_responses_stream_matches_the_whole_answer(client: OpenAI, policy: dict[str, Any]) -> None:
    whole, events = respond(client, policy), list(respond(client, policy, stream=True))
    assert deltas(events) == whole.output_text == events[-1].response.output_text
    assert events[-1].type == "response.completed"
    assert_close(events[-1].response.alignment, whole.alignment)
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_responses_stream_has_each_decision_with_its_block(client: OpenAI) -> None:
    events = list(respond(client, {**BLOCKWISE, "report": "trace"}, stream=True))
    made, text = [], ""
    for event in events:
        made += getattr(event, "alignment_decisions", [])
        text += event.delta if event.type == "response.output_text.delta" else ""
        taken = [c["text"] for one in made for c in one["candidates"] if c["chosen"]]
        assert "".join(taken).startswith(text)
    trace = events[-1].response.alignment["trace"]
    assert made == [{"choice": 0, **decision} for decision in trace]


def test_preset_of_a_response_is_a_model_id(client: OpenAI) -> None:
    answer = respond(client, model="demo:safe")
    assert answer.model == "demo:safe"
    assert_close(answer.alignment, respond(client, "safe").alignment)
    events = list(respond(client, model="demo:safe", stream=True))
    told = {event.response.model for event in events if hasattr(event, "response")}
    assert told == {"demo:safe"}


def test_stored_response_has_its_report(client: OpenAI) -> None:
    made = respond(client, BLOCKWISE)
    kept = client.responses.retrieve(made.id)
    assert (kept.output_text, kept.alignment) == (made.output_text, made.alignment)


def test_response_whose_deadline_passes_at_once_is_incomplete(client: OpenAI) -> None:
    policy = {**BLOCKWISE, "deadline_ms": 1}
    for answer in (
        respond(client, policy),
        list(respond(client, policy, stream=True))[-1].response,
    ):
        assert answer.status == "incomplete"
        assert answer.alignment["deadline"] == {"ms": 1, "passed": True}


def test_failed_reward_of_a_response_is_an_error_in_the_stream(client: OpenAI) -> None:
    policy = {**BEST_OF_N, "rewards": {"nan": 1}}
    with pytest.raises(openai.APIError, match="reward 'nan' is nan"):
        list(respond(client, policy, stream=True))


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    # name: (policy, fields, the error's param)
    "a policy's field": ({**BLOCKWISE, "k": 0}, {}, "alignment.k"),
    "another preset": ("unsafe", {}, "alignment"),
    "a preset and a policy": (BLOCKWISE, {"model": "demo:safe"}, "alignment"),
    "greedy": (BLOCKWISE, {"temperature": 0.0}, "temperature"),
    "too many tokens": ({**BEST_OF_N, "n": 16}, {"max_output_tokens": 1500}, "max_output_tokens"),
    "in the background": (BLOCKWISE, {"background": True}, "background"),
}


@pytest.mark.parametrize(("policy", "fields", "param"), REFUSED.values(), ids=REFUSED)
def test_invalid_response_requests_are_refused_by_their_field(
    client: OpenAI, policy: Any, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        respond(client, policy, **fields)
    assert refused.value.param == param
