"""Prompts from a JSONL file, with their token ids and their text."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from cdserve.errors import ConfigError, safe_repr

Prompt = str | list[dict[str, Any]]
"""Text, or the messages of a chat."""

_ACCEPTED = '{"prompt": "text"}, {"prompt": [messages]} or {"messages": [messages]}'


def read_prompts(path: Path) -> list[Prompt]:
    """Reads the prompts of a JSONL file in order; blank lines are skipped.

    A line is ``{"prompt": "text"}``, ``{"prompt": [messages]}`` (TRL's prompt-only format) or
    ``{"messages": [messages]}``. Other keys are ignored.

    Raises:
        ConfigError: the file cannot be read, has no prompts, or has an invalid line; the message
            then gives the line's number.
    """
    rows = read_rows(path, "prompts", _ACCEPTED)
    return [prompt_of(row, place, _ACCEPTED) for place, row in rows]


def read_rows(path: Path, what: str, accepted: str) -> Iterator[tuple[str, Any]]:
    """Yields the JSON values of a file, each with its place, ``FILE, line N``.

    Args:
        what: noun for the values, in messages.
        accepted: description of a valid line, in messages.

    Raises:
        ConfigError: the file cannot be read, has no values, or has a line that is not JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{path}: the {what} cannot be read: {error}") from error
    if not any(line.strip() for line in lines):
        raise ConfigError(f"{path} has no {what}; each line must be {accepted}")
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                yield place, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{place} is {safe_repr(line)}, which is not JSON; it must be {accepted}"
                ) from error


def prompt_of(row: Any, place: str, accepted: str) -> Prompt:
    """The prompt of a row, under ``prompt`` or ``messages``.

    Args:
        place: place of the row, in messages.
        accepted: description of a valid row, in messages.

    Raises:
        ConfigError: the row has no prompt, two prompts, or an invalid prompt.
    """
    keys = [key for key in ("prompt", "messages") if isinstance(row, dict) and key in row]
    if len(keys) != 1:
        both = " with both keys" if keys else ""
        raise ConfigError(f"{place} is {safe_repr(row)}{both}; it must be {accepted}")
    prompt: Prompt = row[keys[0]]
    if not (keys == ["prompt"] and isinstance(prompt, str)):
        _check_messages(prompt, f"{place}: {keys[0]}", accepted)
    return prompt


def encode(
    prompts: Sequence[Prompt], tokenizer: Any, places: Sequence[str] | None = None
) -> list[list[int]]:
    """Token ids of each prompt, equal to those of a completion or chat request to vLLM.

    Args:
        prompts: the prompts.
        tokenizer: from Transformers. It adds special tokens to a text; the chat template, which
            contains its own special tokens, is applied to messages.
        places: place of each prompt, in messages; None for its number, from 1.

    Raises:
        ConfigError: the chat template is missing or rejects a prompt, or a prompt has no tokens.
    """
    places = places or [f"prompt {number}" for number in range(1, len(prompts) + 1)]
    return [
        _encode(prompt, place, tokenizer) for prompt, place in zip(prompts, places, strict=True)
    ]


def text_of(prompt: Prompt, tokenizer: Any) -> str:
    """The prompt as rewards see it, equal to the text that the server passes to them.

    A text is returned unchanged. Messages are rendered by the tokenizer's chat template, with
    special tokens and the opening of the reply.
    """
    if isinstance(prompt, str):
        return prompt
    text: str = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return text


def _check_messages(messages: Any, place: str, accepted: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise ConfigError(f"{place} is {safe_repr(messages)}; a line must be {accepted}")
    for message in messages:
        if not _is_message(message):
            raise ConfigError(
                f"{place} has {safe_repr(message)}; a message must be an object with role and "
                "content"
            )
    if messages[-1]["role"] == "assistant":
        raise ConfigError(
            f"{place} ends with {safe_repr(messages[-1])}; the last message must not be the "
            "assistant's, whose reply is generated"
        )


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and not value.keys().isdisjoint({"content", "tool_calls"})
    )


def _encode(prompt: Prompt, place: str, tokenizer: Any) -> list[int]:
    try:
        text = text_of(prompt, tokenizer)
    except (TemplateError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{place}, {safe_repr(prompt)}: the chat template rejects it: {error}"
        ) from error
    ids: list[int] = tokenizer(text, add_special_tokens=isinstance(prompt, str))["input_ids"]
    if not ids:
        raise ConfigError(f"{place}, {safe_repr(prompt)}, has no tokens; it must have at least one")
    return ids
