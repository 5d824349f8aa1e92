"""The columns' types, as ``datasets`` reads them in a README.

Without them it takes those of the first rows: a column that is null there, as the reward of a judge
that was away at first is, could then hold nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class _NoType(Exception):
    """Values that no one type has."""


@dataclass(frozen=True, slots=True)
class _List:
    of: Any


@dataclass(frozen=True, slots=True)
class _Struct:
    fields: Mapping[str, Any]


class Features:
    """Learns the types from the rows."""

    def __init__(self) -> None:
        self._type: Any = _Struct({})
        self._known = True

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes a row into account."""
        if self._known:
            try:
                self._type = _joined(self._type, _type_of(row))
            except _NoType:
                self._known = False

    def to_yaml(self) -> list[dict[str, Any]] | None:
        """As in ``dataset_info``; None where a column has values of several types."""
        try:
            return _fields(self._type) if self._known else None
        except _NoType:
            return None


def _type_of(value: Any) -> Any:
    """A name such as ``int64``, or what is nested; None where there is only null."""
    match value:
        case None:
            return None
        case bool():
            return "bool"
        case int():
            return "int64"
        case float():
            return "float64"
        case str():
            return "string"
        case Mapping():
            return _Struct({name: _type_of(one) for name, one in value.items()})
        case _:
            of = None
            for one in value:
                of = _joined(of, _type_of(one))
            return _List(of)


def _joined(first: Any, second: Any) -> Any:
    """The type that has the values of both."""
    match first, second:
        case (None, other) | (other, None):
            return other
        case _List(), _List():
            return _List(_joined(first.of, second.of))
        case _Struct(), _Struct():
            names = {**first.fields, **second.fields}
            return _Struct({n: _joined(first.fields.get(n), second.fields.get(n)) for n in names})
        case _ if first == second:
            return first
        case ("int64", "float64") | ("float64", "int64"):
            return "float64"
    raise _NoType


def _fields(struct: _Struct) -> list[dict[str, Any]]:
    if not struct.fields:
        raise _NoType
    return [{"name": name, **_named(of)} for name, of in struct.fields.items()]


def _named(of: Any) -> dict[str, Any]:
    match of:
        case _Struct():
            return {"struct": _fields(of)}
        case _List(of=_Struct() as inner):
            return {"list": _fields(inner)}
        case _List(of=_List()):
            raise _NoType
        case _List():
            return {"list": of.of or "null"}
    return {"dtype": of or "null"}
