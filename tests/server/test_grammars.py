"""Grammars and forced tool calls under methods of whole responses."""

import json
import re
from typing import Any

import pytest
from openai import OpenAI

from .wire import BEST_OF_N, chat, complete

NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
AGREE = {"name": "agree", "strict": True, "parameters": NOTHING}
TOOL_CALL = {"tools": [{"type": "function", "function": AGREE}], "tool_choice": "required"}


def test_best_of_n_works_with_a_grammar(client: OpenAI) -> None:
    answer = complete(client, BEST_OF_N, structured_outputs={"regex": "(good|bad){3}"})
    assert re.fullmatch("(good|bad){3}", answer.choices[0].text)


def test_best_of_n_works_with_a_json_schema(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"good": {"type": "boolean"}}, "required": ["good"]}
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
    answer = chat(client, BEST_OF_N, response_format=form)
    assert re.match(r'\{\s*"good":\s*(true|false)', answer.choices[0].message.content)


@pytest.mark.parametrize(
    "policy",
    [BEST_OF_N, {"method": "tokenwise_cd", "beta": 1}],
    ids=lambda policy: policy["method"],
)
def test_whole_responses_may_be_tool_calls(client: OpenAI, policy: dict[str, Any]) -> None:
    answer = chat(client, policy, **TOOL_CALL, max_tokens=200)
    first, *_ = answer.choices[0].message.tool_calls
    assert first.function.name == "agree"
    assert json.loads(first.function.arguments) == {}
    assert answer.alignment["method"] == policy["method"]
