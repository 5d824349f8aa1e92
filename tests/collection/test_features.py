"""Types of columns, as ``datasets`` has them."""

from typing import Any

import pytest

from cdserve.collection.features import Features


def learned(*rows: dict[str, Any]) -> Any:
    features = Features()
    for row in rows:
        features.add(row)
    return features.to_yaml()


def test_of_every_kind() -> None:
    row = {"a": True, "b": 1, "c": 0.5, "d": "x", "e": [1], "f": {"g": "x"}, "h": [{"i": 1}]}
    assert learned(row) == [
        {"name": "a", "dtype": "bool"},
        {"name": "b", "dtype": "int64"},
        {"name": "c", "dtype": "float64"},
        {"name": "d", "dtype": "string"},
        {"name": "e", "list": "int64"},
        {"name": "f", "struct": [{"name": "g", "dtype": "string"}]},
        {"name": "h", "list": [{"name": "i", "dtype": "int64"}]},
    ]


def test_what_is_null_or_missing_at_first() -> None:
    rows = ({"a": [{"b": None}], "c": []}, {"a": [{"b": 0.5}, {"d": "x"}], "c": ["x"], "e": 1})
    assert learned(*rows) == [
        {
            "name": "a",
            "list": [{"name": "b", "dtype": "float64"}, {"name": "d", "dtype": "string"}],
        },
        {"name": "c", "list": "string"},
        {"name": "e", "dtype": "int64"},
    ]


def test_only_null() -> None:
    assert learned({"a": None, "b": []}) == [
        {"name": "a", "dtype": "null"},
        {"name": "b", "list": "null"},
    ]


def test_whole_numbers_among_others() -> None:
    assert learned({"a": 1}, {"a": 0.5}) == [{"name": "a", "dtype": "float64"}]


@pytest.mark.parametrize("rows", [({"a": 1}, {"a": "x"}), ({"a": {}},), ({"a": [[1]]},), ()])
def test_what_has_no_type_is_left_to_datasets(rows: tuple[dict[str, Any], ...]) -> None:
    """As where one message has text and the next a list of parts."""
    assert learned(*rows) is None
