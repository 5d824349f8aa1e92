"""Prompts at the length limit, empty prompts, and responses that end as soon as they begin."""

from typing import Any

import openai
import pytest
from openai import OpenAI

from .wire import PROMPT, complete

LENGTH = 2048
"""``max_model_len`` of the demo."""
POLICIES: dict[str, dict[str, Any]] = {
    "best_of_n": {"method": "best_of_n", "n": 3},
    "blockwise": {"method": "blockwise_cd", "k": 3, "m": 8},
    "tokenwise": {"method": "tokenwise_cd", "beta": 0.3},
    "mixing": {"method": "logit_mixing", "weights": {"base": 0.5, "tuned": 0.5}},
    "cards": {"method": "cards", "m": 8, "r_star": 0.0, "max_draws": 4, "k": 2},
    "speculative": {"method": "speculative_rejection", "n": 3, "m": 8},
}
policies = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@policies
def test_prompt_with_room_for_one_token_is_answered(client: OpenAI, policy: dict[str, Any]) -> None:
    answer = complete(client, policy, prompt=[5] * (LENGTH - 2), max_tokens=1)
    assert answer.usage.completion_tokens <= 1
    assert answer.alignment["decisions"] == 1


@policies
def test_prompt_without_room_for_a_token_is_refused(client: OpenAI, policy: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, policy, prompt=[5] * (LENGTH - 1), max_tokens=1)
    assert str(LENGTH - 1) in str(refused.value)


@pytest.mark.parametrize("prompt", ["", []])
@policies
def test_empty_prompt_is_treated_as_without_a_policy(
    client: OpenAI, policy: dict[str, Any], prompt: Any
) -> None:
    """An empty text is the tokenizer's first token, or refused; never a failure."""

    def outcome(alignment: Any) -> str:
        try:
            complete(client, alignment, prompt=prompt, max_tokens=4)
        except openai.BadRequestError:
            return "refused"
        return "answered"

    assert outcome(policy) == outcome(None)


@policies
def test_eos_as_the_first_token_ends_the_answer(client: OpenAI, policy: dict[str, Any]) -> None:
    eos = {str(_eos(client)): 100.0}
    answer = complete(client, {**policy, "report": "trace"}, logit_bias=eos, max_tokens=16)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("", "stop")
    assert answer.usage.completion_tokens <= 1
    assert answer.alignment["decisions"] == 1
    assert isinstance(answer.alignment["rewards"]["sentiment"], float)


@policies
def test_stop_string_as_the_first_block_is_not_in_the_answer(
    client: OpenAI, policy: dict[str, Any]
) -> None:
    first = complete(client, policy, max_tokens=1).choices[0].text
    answer = complete(client, policy, max_tokens=16, stop=[first])
    (choice,) = answer.choices
    assert first not in choice.text
    if policy["method"] in ("tokenwise_cd", "logit_mixing"):  # with the seed, the same draw
        assert (choice.text, choice.finish_reason) == ("", "stop")


def _eos(client: OpenAI) -> int:
    """The token that ended a response by itself."""
    for seed in range(20):
        answer = complete(client, seed=seed, max_tokens=200, prompt=PROMPT)
        if answer.choices[0].finish_reason == "stop":
            return int(answer.choices[0].token_ids[-1])
    raise AssertionError("no response ended by itself")
