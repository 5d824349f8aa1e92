"""``/v1/chat/completions`` through OpenAI's client."""

from typing import Any

import pytest
from openai import OpenAI

from .wire import BEST_OF_N, BLOCKWISE, chat, check_report, joined, text_of

SEARCHES = pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])
MESSAGES = [
    {"role": "system", "content": "You write reviews."},
    {"role": "user", "content": "Please write a short review of the compact suitcase."},
]


@pytest.mark.parametrize("policy", [None, {"method": "none"}])
def test_plain_chat_answers_have_no_report(client: OpenAI, policy: dict[str, str] | None) -> None:
    answer = chat(client, policy)
    assert answer.choices == chat(client).choices
    assert not hasattr(answer, "alignment")


@SEARCHES
def test_chat_report_has_its_shape_and_counts(client: OpenAI, policy: dict[str, Any]) -> None:
    answer = chat(client, policy)
    assert answer.choices[0].message.role == "assistant"
    check_report(answer.alignment, policy, answer.usage.completion_tokens)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("preset", "policy"), [("safe", BLOCKWISE), ("best-of-4", BEST_OF_N)])
def test_preset_of_a_chat_is_a_model_id(
    client: OpenAI, preset: str, policy: dict[str, Any], stream: bool
) -> None:
    answer = chat(client, model=f"demo:{preset}", stream=stream)
    chunks = list(answer) if stream else [answer]
    text = joined(chunks) if stream else text_of(answer.choices[0])
    assert text == text_of(chat(client, policy).choices[0])
    assert chunks[-1].alignment["method"] == policy["method"]
    assert {chunk.model for chunk in chunks} == {f"demo:{preset}"}


@SEARCHES
def test_role_comes_first_in_a_stream(client: OpenAI, policy: dict[str, Any]) -> None:
    first, *_ = chat(client, policy, stream=True)
    assert first.choices[0].delta.role == "assistant"
    assert not first.choices[0].delta.content


@SEARCHES
def test_chat_uses_the_template_of_the_model(client: OpenAI, policy: dict[str, Any]) -> None:
    plain, aligned = chat(client, messages=MESSAGES), chat(client, policy, messages=MESSAGES)
    assert aligned.prompt_token_ids == plain.prompt_token_ids
    assert aligned.usage.prompt_tokens == plain.usage.prompt_tokens == len(plain.prompt_token_ids)


def test_conversation_continues_from_earlier_answers(client: OpenAI) -> None:
    said = text_of(chat(client, BLOCKWISE, messages=MESSAGES).choices[0])
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": said},
        {"role": "user", "content": "Now a review of the folding umbrella."},
    ]
    answer = chat(client, BLOCKWISE, messages=messages)
    check_report(answer.alignment, BLOCKWISE, answer.usage.completion_tokens)


@SEARCHES
def test_each_choice_of_a_chat_has_a_report(client: OpenAI, policy: dict[str, Any]) -> None:
    answer = chat(client, policy, n=2)
    for choice, report in zip(answer.choices, answer.alignment["choices"], strict=True):
        check_report(report, policy, len(choice.token_ids))


def test_max_completion_tokens_is_max_tokens(client: OpenAI) -> None:
    answer = chat(client, BLOCKWISE, max_tokens=None, max_completion_tokens=33, ignore_eos=True)
    assert answer.usage.completion_tokens == 33


async def test_async_client_gets_the_same_answer(client: OpenAI) -> None:
    from openai import AsyncOpenAI

    base_url = str(client.base_url)
    async with AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as asynchronous:
        stream = await asynchronous.chat.completions.create(
            model="demo:safe", messages=MESSAGES, max_tokens=48, seed=7, stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert joined(chunks) == text_of(chat(client, BLOCKWISE, messages=MESSAGES).choices[0])


def test_openai_stream_helper_passes_on_the_chunk_with_the_report(client: OpenAI) -> None:
    """Its accumulator drops fields that it does not know; docs/api.md shows how to keep it."""
    messages = [{"role": "user", "content": "Please write a review of the compact kettle."}]
    asked: dict[str, Any] = {"model": "demo", "messages": messages}
    asked |= {"max_tokens": 400, "seed": 7, "stream_options": {"include_usage": True}}
    with client.chat.completions.stream(**asked, extra_body={"alignment": BEST_OF_N}) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
    (report,) = (chunk.alignment for chunk in chunks if hasattr(chunk, "alignment"))
    final = stream.get_final_completion()
    check_report(report, BEST_OF_N, final.usage.completion_tokens)
    assert text_of(final.choices[0]) == joined(chunks)
