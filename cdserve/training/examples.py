"""Responses with rewards, or pairs of responses, from a JSONL file."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdserve.errors import ConfigError, safe_repr
from cdserve.prompts import Prompt, prompt_of, read_rows

_REWARD_KEYS = ("label", "reward", "rewards", "score")
_ACCEPTED = (
    'an object with "prompt" (or "messages") and one of: "response" (or "completion") with '
    '"reward", "rewards", "label" or "score"; "candidates"; "chosen" and "rejected"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A response to a prompt.

    Attributes:
        place: place in the file, for messages.
        ended: whether the response ended by itself; False if it was cut.
        rewards: rewards by name; empty if the row has none.
    """

    place: str
    prompt: Prompt
    response: str
    ended: bool = True
    rewards: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The responses of a file.

    Attributes:
        rows: the responses. Of pairs, the chosen response comes before the rejected one.
        pairs: whether the responses are pairs.
        names: names of the rewards; empty if the file has none.
    """

    rows: Sequence[Example]
    pairs: bool
    names: tuple[str, ...]


def read_examples(path: Path, *, with_rewards: bool = True) -> Examples:
    """Reads a file of responses; all rows are of one kind, which their keys tell.

    - ``response`` or ``completion``, with a number as ``reward`` or ``score``, numbers by name as
      ``rewards``, a boolean as ``label`` (reward 1 or 0), or none of these keys. ``label`` has
      precedence over ``score``, as in unpaired data of ``cdserve collect``.
    - ``candidates``, several responses with ``rewards``, as ``cdserve collect`` writes them.
    - ``chosen`` and ``rejected``, a pair.

    A response is a text or one message of the assistant. A ``finish_reason`` other than ``stop``
    means that the response was cut. Other keys are ignored.

    Args:
        with_rewards: whether to read the rewards; if not, they are neither kept nor checked.

    Raises:
        ConfigError: the file cannot be read, or a row is invalid; the message gives its line.
    """
    rows: list[Example] = []
    first = ""
    names: tuple[str, ...] = ()
    for place, row in read_rows(path, "responses", _ACCEPTED):
        kind = _kind(row, place)
        if not rows:
            first, pairs = kind, kind == "chosen"
        elif kind != first:
            raise ConfigError(
                f"{place} has {safe_repr(kind)}, and the first row has {safe_repr(first)}; all "
                "rows must be of one kind"
            )
        examples = list(_examples(kind, row, place, with_rewards))
        names = names or tuple(examples[0].rewards)
        for example in examples:
            if set(example.rewards) != set(names):
                raise ConfigError(
                    f"{example.place} has rewards {', '.join(example.rewards)}; the first has "
                    f"{', '.join(names)}"
                )
        rows += examples
    return Examples(rows=rows, pairs=pairs, names=names)


def _kind(row: Any, place: str) -> str:
    """The key of a row that tells its kind."""
    keys = row.keys() if isinstance(row, dict) else set[str]()
    if {"chosen", "rejected"} <= keys:
        return "chosen"
    if "candidates" in keys:
        return "candidates"
    if len(keys & {"response", "completion"}) != 1:
        raise ConfigError(f"{place} is {safe_repr(row)}; it must be {_ACCEPTED}")
    return next((key for key in _REWARD_KEYS if key in keys), "no reward")


def _examples(kind: str, row: dict[str, Any], place: str, with_rewards: bool) -> Iterator[Example]:
    prompt = prompt_of(row, place, _ACCEPTED)
    if kind == "chosen":
        for key in ("chosen", "rejected"):
            response = _text(row[key], f"{place}: {key}")
            yield Example(place=place, prompt=prompt, response=response)
    elif kind == "candidates":
        candidates = row["candidates"]
        if not isinstance(candidates, list) or not candidates:
            raise ConfigError(
                f"{place}: candidates is {safe_repr(candidates)}; it must be a list of responses"
            )
        for number, candidate in enumerate(candidates, 1):
            yield _candidate(candidate, prompt, f"{place}, candidate {number}", with_rewards)
    else:
        key = "response" if "response" in row else "completion"
        yield Example(
            place=place,
            prompt=prompt,
            response=_text(row[key], f"{place}: {key}"),
            ended=_ended(row, place),
            rewards=_rewards(kind, row, place) if with_rewards else {},
        )


def _candidate(candidate: Any, prompt: Prompt, place: str, with_rewards: bool) -> Example:
    if not (isinstance(candidate, dict) and {"text", "rewards"} <= candidate.keys()):
        raise ConfigError(
            f'{place} is {safe_repr(candidate)}; it must be an object with "text" and "rewards"'
        )
    return Example(
        place=place,
        prompt=prompt,
        response=_text(candidate["text"], f"{place}: text"),
        ended=_ended(candidate, place),
        rewards=_rewards("rewards", candidate, place) if with_rewards else {},
    )


def _rewards(kind: str, row: Mapping[str, Any], place: str) -> dict[str, float]:
    value = row.get(kind)
    if kind == "no reward":
        return {}
    if kind == "label":
        if not isinstance(value, bool):
            raise ConfigError(f"{place}: label is {safe_repr(value)}; it must be true or false")
        return {"label": float(value)}
    if kind != "rewards":
        return {kind: _number(value, f"{place}: {kind}")}
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{place}: rewards is {safe_repr(value)}; it must be numbers by name")
    return {name: _number(number, f"{place}: rewards.{name}") for name, number in value.items()}


def _number(value: Any, place: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ConfigError(f"{place} is {safe_repr(value)}; it must be a finite number")
    return float(value)


def _text(value: Any, place: str) -> str:
    """The text of a response, which may be in an assistant's message."""
    message = value[0] if isinstance(value, list) and len(value) == 1 else value
    text = value
    if isinstance(message, dict) and message.get("role") == "assistant":
        text = message.get("content")
    if not isinstance(text, str):
        raise ConfigError(
            f"{place} is {safe_repr(value)}; it must be a text or one message of the assistant"
        )
    return text


def _ended(row: Mapping[str, Any], place: str) -> bool:
    reason = row.get("finish_reason")
    if reason is not None and not isinstance(reason, str):
        raise ConfigError(
            f"{place}: finish_reason is {safe_repr(reason)}; it must be stop, length or another "
            "reason of the server"
        )
    return reason in (None, "stop")
