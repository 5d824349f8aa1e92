"""Types of columns, as ``datasets`` reads them."""

from typing import Any

import pytest

from cdserve.collection.features import features

from .samples import CHAT, TEXT


def test_every_kind_of_value_has_its_type() -> None:
    row = {"a": True, "b": 1, "c": 0.5, "d": "x", "e": [1], "f": {"g": "x"}, "h": [{"i": 1}]}
    assert features(row, [TEXT]) == [
        {"name": "a", "dtype": "bool"},
        {"name": "b", "dtype": "int64"},
        {"name": "c", "dtype": "float64"},
        {"name": "d", "dtype": "string"},
        {"name": "e", "list": "int64"},
        {"name": "f", "struct": [{"name": "g", "dtype": "string"}]},
        {"name": "h", "list": [{"name": "i", "dtype": "int64"}]},
    ]


def test_null_is_a_number_and_an_empty_list_has_no_type() -> None:
    row = {"a": [{"b": None}, {"b": 0.5}], "c": []}
    assert features(row, [CHAT]) == [
        {"name": "a", "list": [{"name": "b", "dtype": "float64"}]},
        {"name": "c", "list": "null"},
    ]


@pytest.mark.parametrize("row", [{"a": [1, "x"]}, {"a": {}}, {"a": [[1]]}, {}])
def test_values_without_one_type_are_left_to_datasets(row: dict[str, Any]) -> None:
    assert features(row, [TEXT]) is None


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "user", "content": "x", "name": "x"},
    ],
)
def test_chats_with_other_messages_than_role_and_text_are_left_to_datasets(
    message: dict[str, Any],
) -> None:
    assert features({"a": 1}, [CHAT, [message]]) is None
