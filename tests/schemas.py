"""Invalid objects of a pydantic model, enumerated from its JSON schema."""

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]
Path = tuple[str | int, ...]
_WORDS = ("Input", "input", "Value error", "validation", "should", "tag ", "discriminator")
_WORDS += ("instance", "dictionary", "valid ", "Selection", "Tilt", "Mix", "Bound", "[str", "[int")
_WRONG: list[Any] = [
    *[None, True, 0, -1, 2.5, 10**30, math.nan, math.inf, "x", "1"],
    *[[], ["x"], [[]], [0], [1] * 1025],
    *[{}, {"x": 1}, {"a": "x"}, {"method": "x"}, {"method": 1}, {"kind": "x"}, {"kind": ["x"]}],
    {str(i): 1 for i in range(65)},
]


def _branches(schema: Schema, root: Schema) -> list[Schema]:
    """The schemas of a union, references resolved, without null."""
    if "$ref" in schema:
        schema = {**schema, **root["$defs"][schema["$ref"].rpartition("/")[2]]}
    union = schema.get("anyOf") or schema.get("oneOf") or [schema]
    return [
        inner
        for part in union
        for inner in ([part] if part is schema else _branches(part, root))
        if inner.get("type") != "null"
    ]


def _valid(schema: Schema, root: Schema) -> Any:
    """A value that the schema accepts."""
    if schema.get("default") is not None:
        return schema["default"]
    (first, *_) = _branches(schema, root)
    if "const" in first:
        return first["const"]
    if first["type"] == "object":
        if "properties" not in first:
            return {"x": 1.0}
        return {name: _valid(first["properties"][name], root) for name in first.get("required", [])}
    return {"array": [], "boolean": True, "integer": 1, "number": 1.0, "string": "x"}[first["type"]]


def _places(schema: Schema, root: Schema) -> Iterator[tuple[dict[str, Any], Path]]:
    """Valid objects, each with the path of one of its values: every field and every branch."""
    least = _valid({**schema, "default": None}, root)
    for name, field in schema["properties"].items():
        yield {**least, name: None}, (name,)
        for branch in _branches(field, root):
            if "properties" in branch:
                for inner, path in _places(branch, root):
                    yield {**least, name: inner}, (name, *path)
            elif branch["type"] == "object":
                yield {**least, name: {"x": 1.0}}, (name, "x")
                items = branch.get("additionalProperties")
                for item in _branches(items, root) if isinstance(items, dict) else []:
                    for inner, path in _places(item, root) if "properties" in item else []:
                        yield {**least, name: {"x": inner}}, (name, "x", *path)
            elif branch["type"] == "array":
                yield {**least, name: [1]}, (name, 0)


def wrong_values(model: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """Valid objects with one value replaced: every field by many values, few of them valid."""
    schema = model.model_json_schema()
    for valid, path in _places(schema, schema):
        for value in _WRONG:
            yield _changed(valid, path, value)


def wrong_fields(model: type[BaseModel]) -> Iterator[dict[str, Any]]:
    """Valid objects without one of their fields, and with an unknown one."""
    schema = model.model_json_schema()
    for valid, path in _places(schema, schema):
        unknown, missing = _changed(valid, path, 1), _changed(valid, path, 1)
        parent = _parent(missing, path)
        if isinstance(parent, dict):
            _parent(unknown, path)["zzz"] = 1
            del parent[path[-1]]
            yield from (unknown, missing)


def pydantics_words(message: str) -> list[str]:
    """Words of pydantic's messages, and names of classes, in a message."""
    return [word for word in _WORDS if word in message]


def _parent(sent: dict[str, Any], path: Path) -> Any:
    parent: Any = sent
    for step in path[:-1]:
        parent = parent[step]
    return parent


def _changed(sent: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    copy = deepcopy(sent)
    _parent(copy, path)[path[-1]] = value
    return copy
