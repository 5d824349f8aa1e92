"""Several conversations in one request, each answered as if it were alone."""

import re
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from .wire import BEST_OF_N, BLOCKWISE, chat, text_of

TALKS = [
    [{"role": "user", "content": "Please write a review of the travel lawn mower."}],
    [
        {"role": "system", "content": "You write reviews."},
        {"role": "user", "content": "I need one of the kettle."},
    ],
]
POLICIES = {
    "blockwise": BLOCKWISE,
    "tokenwise": {"method": "tokenwise_cd", "beta": 0.3},
    # It reads each one's conversation.
    "reward model": {**BEST_OF_N, "rewards": {"model": 1}},
}


def ask(http: httpx2.Client, policy: Any, **fields: Any) -> httpx2.Response:
    body = {"model": "demo", "messages": TALKS, "max_tokens": 32, "seed": 7, "alignment": policy}
    return http.post("/v1/chat/completions/batch", json=body | fields)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_each_conversation_is_answered_as_if_alone(
    http: httpx2.Client, client: OpenAI, policy: dict[str, Any]
) -> None:
    answer = ask(http, policy).raise_for_status().json()
    alone = [chat(client, policy, messages=talk, max_tokens=32) for talk in TALKS]
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert texts == [text_of(one.choices[0]) for one in alone]
    scores = [choice["score"] for choice in answer["alignment"]["choices"]]
    assert scores == pytest.approx([one.alignment["score"] for one in alone], abs=1e-5)


def test_preset_of_a_batch_is_a_model_id(http: httpx2.Client) -> None:
    answer = ask(http, None, model="demo:safe").raise_for_status().json()
    assert answer["model"] == "demo:safe"
    assert [one["method"] for one in answer["alignment"]["choices"]] == ["blockwise_cd"] * 2


def test_batch_without_a_policy_is_answered_by_vllm(http: httpx2.Client) -> None:
    answer = ask(http, None).raise_for_status().json()
    assert len(answer["choices"]) == 2
    assert "alignment" not in answer


def test_limit_covers_all_conversations_of_a_batch(http: httpx2.Client) -> None:
    answer = ask(http, {**BEST_OF_N, "n": 16}, messages=TALKS * 8, max_tokens=40)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "max_tokens"
    assert "× 16 answers would be 10240 tokens" in error["message"]


def test_batch_continues_a_grammar_across_blocks(http: httpx2.Client) -> None:
    policy = {**BLOCKWISE, "m": 2}
    answer = ask(http, policy, structured_outputs={"regex": "(good|bad){3}"}).raise_for_status()
    for choice in answer.json()["choices"]:
        assert re.fullmatch("(good|bad){3}", choice["message"]["content"])
