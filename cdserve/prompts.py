"""The prompts that responses are drawn for: a JSONL file, their token ids, their text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from cdserve.errors import ConfigError, safe_repr

Prompt = str | list[dict[str, Any]]
"""A text, or the messages of a chat."""

_ACCEPTED = '{"prompt": "text"}, {"prompt": [messages]} or {"messages": [messages]}'


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSONL file, in order; blank lines are skipped.

    A line is ``{"prompt": "text"}``, ``{"prompt": [messages]}`` (TRL's prompt-only format) or
    ``{"messages": [messages]}``. What else a line holds is not read.

    Raises:
        ConfigError: the file cannot be read or has no prompt; or a line is something else, then
            with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{path}: the prompts cannot be read: {error}") from error
    prompts = [
        _parse(line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not prompts:
        raise ConfigError(f"{path} has no prompts; each line must be {_ACCEPTED}")
    return prompts


def encode(prompts: Sequence[Prompt], tokenizer: Any) -> list[list[int]]:
    """Token ids of each prompt, as vLLM has them of a completion or a chat request.

    Args:
        tokenizer: from Transformers. It adds its special tokens to a text; the messages of a chat
            go through its chat template, which writes its own.

    Raises:
        ConfigError: the chat template refuses a prompt, or there is none, or a prompt has no
            tokens; with the prompt's number, from 1.
    """
    return [_encode(prompt, number, tokenizer) for number, prompt in enumerate(prompts, 1)]


def text_of(prompt: Prompt, tokenizer: Any) -> str:
    """What a reward sees as the prompt, the same as when the server scores a response.

    That is a text itself, and of a chat what the tokenizer's chat template makes of its messages,
    special tokens and the opening of the reply included.
    """
    if isinstance(prompt, str):
        return prompt
    text: str = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return text


def _parse(line: str, place: str) -> Prompt:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{place} is {safe_repr(line)}, no JSON; it must be {_ACCEPTED}"
        ) from error
    keys = [key for key in ("prompt", "messages") if isinstance(found, dict) and key in found]
    if len(keys) != 1:
        both = " with both" if keys else ""
        raise ConfigError(f"{place} is {safe_repr(found)}{both}; it must be {_ACCEPTED}")
    prompt: Prompt = found[keys[0]]
    if not (keys == ["prompt"] and isinstance(prompt, str)):
        _check_messages(prompt, f"{place}: {keys[0]}")
    return prompt


def _check_messages(found: Any, place: str) -> None:
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{place} is {safe_repr(found)}; a line must be {_ACCEPTED}")
    for message in found:
        if not _is_message(message):
            raise ConfigError(
                f"{place} has {safe_repr(message)}; a message must be an object with role and "
                "content"
            )
    if found[-1]["role"] == "assistant":
        raise ConfigError(
            f"{place} ends with {safe_repr(found[-1])}; what the assistant says next is drawn, so "
            "the last message must be another's"
        )


def _is_message(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("role"), str)
        and not found.keys().isdisjoint({"content", "tool_calls"})
    )


def _encode(prompt: Prompt, number: int, tokenizer: Any) -> list[int]:
    try:
        text = text_of(prompt, tokenizer)
    except (TemplateError, ValueError, TypeError) as error:
        raise ConfigError(
            f"prompt {number}, {safe_repr(prompt)}: the chat template refuses it: {error}"
        ) from error
    ids: list[int] = tokenizer(text, add_special_tokens=isinstance(prompt, str))["input_ids"]
    if not ids:
        raise ConfigError(f"prompt {number}, {safe_repr(prompt)}, has no tokens; it must have some")
    return ids
