"""Anthropic's Messages API under policies, by its own client."""

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import Anthropic

from tests.server.served import Served
from tests.server.wire import BEST_OF_N, BLOCKWISE, check_report

ASKED = [{"role": "user", "content": "Please write a review of the travel lawn mower."}]
POLICIES = {
    "best_of_n": BEST_OF_N,
    "blockwise": BLOCKWISE,
}
EVERY = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@pytest.fixture(scope="module")
def claude(server: Served) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.base_url, auth_token="none", max_retries=0) as client:
        yield client


def message(client: Anthropic, policy: Any = None, **fields: Any) -> Any:
    extra = fields.pop("extra_body", {}) | ({} if policy is None else {"alignment": policy})
    request = {"model": "demo", "messages": ASKED, "max_tokens": 48} | fields
    return client.messages.create(**request, extra_body=extra)


@EVERY
def test_message_has_a_text_and_its_report(claude: Anthropic, policy: dict[str, Any]) -> None:
    answer = message(claude, policy)
    (block,) = answer.content
    assert block.text
    check_report(answer.alignment, policy, answer.usage.output_tokens)


def test_message_without_a_policy_is_answered_by_vllm(claude: Anthropic) -> None:
    assert not hasattr(message(claude), "alignment")


@EVERY
def test_messages_stream_has_the_text_and_its_report(
    claude: Anthropic, policy: dict[str, Any]
) -> None:
    made, text, told, taken = [], "", None, ""
    for event in message(claude, {**policy, "report": "trace"}, stream=True):
        made += getattr(event, "alignment_decisions", [])
        taken = "".join(c["text"] for d in made for c in d["candidates"] if c["chosen"])
        if event.type == "content_block_delta":
            text += event.delta.text
            assert taken.startswith(text)
        if event.type == "message_delta":
            told, tokens = event.alignment, event.usage.output_tokens
    assert text
    assert text == taken
    assert made == [{"choice": 0, **decision} for decision in told.pop("trace")]
    check_report(told, policy, tokens)


def test_preset_of_a_message_is_a_model_id(claude: Anthropic) -> None:
    answer = message(claude, model="demo:safe")
    assert (answer.model, answer.alignment["method"]) == ("demo:safe", "blockwise_cd")
    start = next(iter(message(claude, model="demo:safe", stream=True)))
    assert start.message.model == "demo:safe"


def test_count_tokens_accepts_presets(claude: Anthropic) -> None:
    counts = [
        claude.messages.count_tokens(model=model, messages=ASKED).input_tokens
        for model in ("demo", "demo:safe")
    ]
    assert counts == [message(claude).usage.input_tokens] * 2


def test_stop_sequence_ends_a_message(claude: Anthropic) -> None:
    policy = {**BEST_OF_N, "n": 8, "sampling": {"temperature": 0.7}}
    seeded = {"temperature": 0}  # a fixed seed
    answer = message(claude, policy, extra_body=seeded, stop_sequences=["."])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", ".")


def test_message_whose_deadline_passes_at_once_ends(claude: Anthropic) -> None:
    policy = {**BLOCKWISE, "deadline_ms": 1}
    answer = message(claude, policy)
    (end,) = (e for e in message(claude, policy, stream=True) if e.type == "message_delta")
    assert answer.stop_reason == end.delta.stop_reason == "max_tokens"
    assert answer.alignment["deadline"] == end.alignment["deadline"] == {"ms": 1, "passed": True}


def test_failed_reward_of_a_message_is_an_error_in_the_stream(claude: Anthropic) -> None:
    policy = {**BEST_OF_N, "rewards": {"nan": 1}}
    with pytest.raises(anthropic.APIStatusError, match="reward 'nan' is nan"):
        list(message(claude, policy, stream=True))


THINKING = {"type": "enabled", "budget_tokens": 1024}
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    # name: (policy, fields, the error's param)
    "a policy's field": ({**BLOCKWISE, "k": 0}, {}, "alignment.k"),
    "greedy": (BLOCKWISE, {"temperature": 0.0}, "temperature"),
    "too many tokens": ({**BEST_OF_N, "n": 16}, {"max_tokens": 1500}, "max_tokens"),
    "a budget across blocks": (
        BLOCKWISE,
        {"thinking": THINKING, "max_tokens": 1030},
        "thinking.budget_tokens",
    ),
}


@pytest.mark.parametrize(("policy", "fields", "param"), REFUSED.values(), ids=REFUSED)
def test_invalid_message_requests_are_refused_by_their_field(
    claude: Anthropic, policy: Any, fields: dict[str, Any], param: str
) -> None:
    limit = {"max_tokens": fields.pop("max_tokens", 48)}
    with pytest.raises(anthropic.BadRequestError) as refused:
        message(claude, policy, extra_body=fields, **limit)
    assert refused.value.body["type"] == "error"
    assert refused.value.body["error"]["param"] == param


def test_unknown_model_of_a_message_is_a_404(claude: Anthropic, http: httpx2.Client) -> None:
    for policy in (None, BLOCKWISE):
        with pytest.raises(anthropic.NotFoundError) as refused:
            message(claude, policy, model="demo:unknown")
        assert refused.value.body["type"] == "error"
        assert "demo:unknown" in refused.value.body["error"]["message"]
