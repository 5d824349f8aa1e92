"""Grammars and tool calls under policies."""

import json
import re
from typing import Any

import pytest
from openai import OpenAI

from cdserve.demo.tiny import MODEL_DIR
from cdserve.demo.tiny.build.folders import load_tokenizer

from .wire import BEST_OF_N, PROMPT, chat, complete

BLOCKS = {"method": "blockwise_cd", "k": 2, "m": 3}
"""Blocks that end inside words, values and tool calls."""
BEAMS = {**BLOCKS, "beam_width": 2}
CARDS = {"method": "cards", "k": 2, "m": 3, "max_draws": 4, "beta": 1.0, "r_star": 1.0}
SPECULATIVE = {"method": "speculative_rejection", "n": 4, "m": 3, "alpha": 0.5}
TILT = {"method": "tokenwise_cd", "beta": 1}
BY_BLOCKS = {
    "blockwise": BLOCKS,
    "beams": BEAMS,
    "cards": CARDS,
    "speculative": SPECULATIVE,
    "over a tilt": {**BLOCKS, "proposal": TILT},
    "log-likelihood": {**BLOCKS, "rewards": {"fluent": 1.0}},
    "no head": {**BLOCKS, "rewards": {"variety": 1.0}},
}
GREEDY = {"method": "blockwise_cd", "k": 1, "m": 3}
"""One candidate per block, so at temperature 0 the answer is that of plain decoding."""

TOKENIZER = load_tokenizer(MODEL_DIR)
SPACES = [i for i in range(len(TOKENIZER)) if TOKENIZER.decode([i]).isspace()]
COMPACT = {"logit_bias": {str(token): -20.0 for token in SPACES}, "max_tokens": 100}
"""JSON allows any space between its parts, and the model would write it until the end."""
SCHEMA = {
    "type": "object",
    "properties": {"good": {"type": "boolean"}, "word": {"enum": ["mower", "garden"]}},
    "required": ["good", "word"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA}}
GRAMMARS: dict[str, dict[str, Any]] = {
    "regex": {"structured_outputs": {"regex": "(good|bad){3}"}},
    "choice": {"structured_outputs": {"choice": ["a wonderful mower", "a wonderful book"]}},
    "EBNF": {"structured_outputs": {"grammar": 'root ::= "(" root ")" | "x" | "y"'}},
    "JSON schema": {"response_format": FORM},
}
AGREE = {"name": "agree", "strict": True, "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": AGREE}]
FORCED: dict[str, dict[str, Any]] = {
    "required": {"tools": TOOLS, "tool_choice": "required"},
    "named": {
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "agree"}},
    },
}
CALL = r'<tool_call>\{"name": "agree", "arguments": \{"good": (true|false)\}\}</tool_call>'
AUTO = {
    "tools": [{"type": "function", "function": {"name": "agree"}}],
    "tool_choice": "auto",
    "structured_outputs": {"regex": CALL},
    **COMPACT,
}
"""A model that always calls the tool, though it need not."""


def calls_of(chunks: list[Any]) -> list[tuple[str, str]]:
    """Name and arguments of each call in a stream, as clients join them."""
    calls: dict[int, tuple[str, str]] = {}
    for delta in (choice.delta for chunk in chunks for choice in chunk.choices):
        for part in delta.tool_calls or ():
            name, arguments = calls.get(part.index, ("", ""))
            new = part.function
            calls[part.index] = (name + (new.name or ""), arguments + (new.arguments or ""))
    return list(calls.values())


@pytest.mark.parametrize("policy", BY_BLOCKS.values(), ids=BY_BLOCKS)
def test_every_block_search_keeps_to_the_grammar(client: OpenAI, policy: dict[str, Any]) -> None:
    for seed in range(3):
        answer = complete(client, policy, seed=seed, **GRAMMARS["regex"])
        (choice,) = answer.choices
        assert re.fullmatch("(good|bad){3}", choice.text)
        assert choice.finish_reason == "stop"
        assert answer.alignment["decisions"] > 1


@pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKS], ids=lambda policy: policy["method"])
@pytest.mark.parametrize("name", GRAMMARS)
def test_search_keeps_to_every_kind_of_grammar(
    client: OpenAI, policy: dict[str, Any], name: str
) -> None:
    answer = chat(client, policy, **GRAMMARS[name], **COMPACT)
    text = answer.choices[0].message.content
    match name:
        case "regex":
            assert re.fullmatch("(good|bad){3}", text)
        case "choice":
            assert text in GRAMMARS[name]["structured_outputs"]["choice"]
        case "EBNF":
            assert re.fullmatch(r"\(*[xy]?\)*", text)
        case _:
            assert json.loads(text).keys() == {"good", "word"}


@pytest.mark.parametrize("name", [*GRAMMARS, *FORCED])
def test_greedy_blocks_equal_plain_greedy_decoding_under_a_grammar(
    client: OpenAI, name: str
) -> None:
    fields = {**GRAMMARS, **FORCED}[name] | COMPACT | {"temperature": 0}
    by_blocks, plain = (chat(client, policy, **fields).choices[0] for policy in (GREEDY, None))
    assert by_blocks.token_ids == plain.token_ids
    assert by_blocks.finish_reason == plain.finish_reason != "length"
    assert by_blocks.message.content == plain.message.content


@pytest.mark.parametrize("policy", [BEST_OF_N, TILT, BLOCKS], ids=lambda policy: policy["method"])
@pytest.mark.parametrize("name", FORCED)
def test_forced_tool_call_is_parsed_streaming_or_not(
    client: OpenAI, policy: dict[str, Any], name: str
) -> None:
    fields = {**FORCED[name], **COMPACT}
    answer = chat(client, policy, **fields)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "agree"
    assert json.loads(call.function.arguments).keys() == {"good", "word"}
    assert answer.alignment["method"] == policy["method"]
    chunks = list(chat(client, policy, **fields, stream=True))
    ((name, arguments),) = calls_of(chunks)
    assert (name, json.loads(arguments)) == ("agree", json.loads(call.function.arguments))
    assert chunks[-1].alignment["method"] == policy["method"]


@pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKS], ids=lambda policy: policy["method"])
def test_auto_tool_choice_parses_the_call_of_a_search(
    client: OpenAI, policy: dict[str, Any]
) -> None:
    answer = chat(client, policy, **AUTO)
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert json.loads(call.function.arguments).keys() == {"good"}
    chunks = list(chat(client, policy, **AUTO, stream=True))
    assert [name for name, _ in calls_of(chunks)] == ["agree"]
    parts = [choice.delta.tool_calls or [] for chunk in chunks for choice in chunk.choices]
    assert max(map(len, parts)) == 1  # some clients read only the first
    assert chunks[-1].alignment["decisions"] == answer.alignment["decisions"]


def test_responses_api_continues_a_tool_call_across_blocks(client: OpenAI) -> None:
    answer = client.responses.create(
        model="demo",
        input=PROMPT,
        max_output_tokens=100,
        tools=[{"type": "function", **AGREE}],
        tool_choice="required",
        extra_body={"alignment": BLOCKS, "logit_bias": COMPACT["logit_bias"], "seed": 7},
    )
    (call,) = answer.output
    assert json.loads(call.arguments).keys() == {"good", "word"}
    assert answer.alignment["decisions"] > 1


def test_max_tokens_end_an_answer_inside_a_grammar(client: OpenAI) -> None:
    answer = complete(client, BLOCKS, max_tokens=4, structured_outputs={"regex": "(good){9}"})
    (choice,) = answer.choices
    assert choice.text < "good" * 9
    assert ("good" * 9).startswith(choice.text)
    assert choice.finish_reason == "length"
