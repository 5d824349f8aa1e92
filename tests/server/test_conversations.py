"""Reward models read the conversation on every route of chats."""

import httpx2
import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.wire.test_messages import message
from tests.wire.test_responses import ASKED, respond

from .served import Served
from .wire import BEST_OF_N, check_report

MODEL = {**BEST_OF_N, "rewards": {"model": 1}}
"""Its reward reads the conversation."""
SEVERAL = {**BEST_OF_N, "rewards": {"sentiment": 1.0, "model": 0.5}}


def reward(http: httpx2.Client, messages: list[dict[str, str]], text: str) -> float:
    """Score of a response to a conversation by the reward model."""
    body = {"prompt": messages, "responses": [text], "rewards": {"model": 1}}
    answer = http.post("/v1/alignment/score", json=body).raise_for_status().json()
    score: float = answer["scores"][0]["score"]
    return score


def test_reward_model_reads_the_conversation_of_a_response(
    client: OpenAI, http: httpx2.Client
) -> None:
    first = respond(client, MODEL, instructions="You write reviews.")
    talk = [
        {"role": "system", "content": "You write reviews."},
        {"role": "user", "content": ASKED},
    ]
    assert first.alignment["score"] == pytest.approx(
        reward(http, talk, first.output_text), abs=1e-3
    )
    second = respond(client, MODEL, input="Another one.", previous_response_id=first.id)
    talk = [
        talk[1],
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Another one."},
    ]
    assert second.alignment["score"] == pytest.approx(
        reward(http, talk, second.output_text), abs=1e-3
    )


@pytest.mark.parametrize("stream", [False, True])
def test_messages_are_scored_by_several_rewards(server: Served, stream: bool) -> None:
    with Anthropic(base_url=server.base_url, auth_token="none", max_retries=0) as claude:
        answer = message(claude, SEVERAL, stream=stream)
        if stream:
            (answer,) = (event for event in answer if event.type == "message_delta")
    check_report(answer.alignment, SEVERAL, answer.usage.output_tokens)
