"""Column types of a data set, as ``datasets`` reads them in a README.

Without them ``datasets`` takes the types of the first rows: a column that is null there, such as
the reward of a judge that failed at first, could then hold nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cdserve.prompts import Prompt

_DTYPES = {bool: "bool", int: "int64", float: "float64", str: "string", type(None): "float64"}
"""A null stands for a number: only rewards and log-probabilities may be missing."""


class _Irregular(Exception):
    """A list has elements of several types, or there is no type for the value."""


def features(row: Mapping[str, Any], prompts: Sequence[Prompt]) -> list[dict[str, Any]] | None:
    """The columns' types, as in ``dataset_info``; None leaves them to ``datasets``.

    All rows of a format have the fields of the first, except for the messages of chats: these must
    all be a role and a text.

    Args:
        row: the first row.
        prompts: the prompts of all rows.
    """
    try:
        return _fields(row) if all(map(_is_plain, prompts)) else None
    except _Irregular:
        return None


def _is_plain(prompt: Prompt) -> bool:
    return isinstance(prompt, str) or all(
        message.keys() == {"role", "content"} and isinstance(message["content"], str)
        for message in prompt
    )


def _fields(struct: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not struct:
        raise _Irregular
    return [{"name": name, **_typed(value)} for name, value in struct.items()]


def _typed(value: Any) -> dict[str, Any]:
    match value:
        case Mapping():
            return {"struct": _fields(value)}
        case list():
            first, *others = map(_typed, value) if value else [{"dtype": "null"}]
            if "list" in first or any(other != first for other in others):
                raise _Irregular
            return {"list": first.get("struct") or first["dtype"]}
    return {"dtype": _DTYPES[type(value)]}
