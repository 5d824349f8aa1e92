"""pydantic's errors as sentences: the path of the field, its value, and what it accepts."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cdserve.errors import safe_repr

Schema = Mapping[str, Any]

_TYPES = {
    "bool": "true or false",
    "dict": "an object",
    "float": "a number",
    "int": "an integer",
    "list": "a list",
    "model": "an object",
    "string": "a string",
    "tuple": "a list",
}
"""Required type, by the first word of the name of pydantic's error."""
_PLURALS = {
    "a number": "numbers",
    "a string": "strings",
    "an integer": "integers",
    "an object": "objects",
}
_KEY = "[key]"
"""Last step of the path of an error in an object's key."""


def explain(
    error: ValidationError, model: type[BaseModel], sent: Any
) -> tuple[list[str | int], str]:
    """Path of the first invalid field, and the predicate of a sentence about the field.

    The steps of pydantic's path that name a branch of a union are left out.

    Args:
        error: raised by the validation.
        model: class that was validated.
        sent: the object that was validated.
    """
    first = _first(error)
    root = _schema(model)
    owner = schema = root
    value = sent
    path: list[str | int] = []
    for number, step in enumerate(first["loc"], 1):
        schema = _reduced(schema, root)
        if mapping := schema.get("discriminator", {}).get("mapping"):
            schema = {"$ref": mapping[step]}
        elif "anyOf" in schema or "oneOf" in schema:
            branch = _branch(schema, root, value)
            if branch is None or number == len(first["loc"]):
                return path, f"is {safe_repr(value)}; it takes {_accepted(schema, root)}"
            schema = branch
        elif step == _KEY:
            return path, f"is not a name; {requirement(first)}"
        else:
            path.append(step)
            owner, schema, value = schema, _below(schema, step), _item(value, step)
    schema = _reduced(schema, root)
    match first["type"]:
        case "extra_forbidden" | "invalid_key":
            names = sorted(owner.get("properties", {}))
            accepted = f"accepted here: {', '.join(names)}"
            return path, f"is not known{did_you_mean(path[-1], names)}; {accepted}"
        case "missing":
            return path, f"is missing; it takes {_accepted(schema, root)}"
        case "union_tag_invalid" | "union_tag_not_found" if "discriminator" in schema:
            tag = schema["discriminator"]["propertyName"]
            tags = schema["discriminator"]["mapping"]
            takes = f"it takes {_alternatives(map(repr, tags))}"
            if tag not in value:
                return [*path, tag], f"is missing; {takes}"
            return [*path, tag], (
                f"is {safe_repr(value[tag])}{did_you_mean(value[tag], tags)}; {takes}"
            )
    words = requirement(first)
    return path, f"is {safe_repr(first['input'])}; {words}" if path else words


def _first(error: ValidationError) -> ErrorDetails:
    """The first error; the misspelling of a key comes before the lack of the key."""
    errors = error.errors(include_url=False)
    missing = [each["loc"] for each in errors if each["type"] == "missing"]
    for each in errors:
        *owner, key = each["loc"] or ("",)
        absent = [str(loc[-1]) for loc in missing if [*loc[:-1]] == owner]
        if each["type"] == "extra_forbidden" and did_you_mean(key, absent):
            return each
    return errors[0]


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """``; did you mean NAME`` with the name most like an unknown one; empty if none is like it."""
    alike = {accepted.lower(): accepted for accepted in names}
    matches = get_close_matches(str(name).lower(), alike, n=1, cutoff=0.7)
    return f"; did you mean {alike[matches[0]]}" if matches else ""


_schema = cache(lambda model: model.model_json_schema())


def _reduced(schema: Schema, root: Schema) -> Schema:
    """The schema behind references and unions with null."""
    while True:
        parts = [part for part in _union(schema) if part.get("type") != "null"]
        if "$ref" in schema:
            schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
        elif len(parts) == 1:
            (schema,) = parts
        else:
            return schema


def _union(schema: Schema) -> list[Schema]:
    union: list[Schema] = schema.get("anyOf") or schema.get("oneOf") or []
    return union


def _branches(schema: Schema, root: Schema) -> Iterator[Schema]:
    """The branches of a union and of the unions in it, without null."""
    schema = _reduced(schema, root)
    for part in _union(schema):
        yield from _branches(part, root)
    if not _union(schema) and schema.get("type") != "null":
        yield schema


def _branch(schema: Schema, root: Schema, value: object) -> Schema | None:
    """The only branch for lists or objects, if ``value`` is one."""
    kind = "array" if isinstance(value, list) else "object" if isinstance(value, dict) else ""
    branches = [branch for branch in _branches(schema, root) if branch.get("type") == kind]
    return branches[0] if len(branches) == 1 else None


def _below(schema: Schema, step: str | int) -> Schema:
    """Schema of a field of an object, or of an item of a list; empty for an unknown field."""
    if isinstance(step, int):
        items: list[Schema] = schema.get("prefixItems", [])
        return items[step] if step < len(items) else schema.get("items", {})
    others = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")]
    below: Any = schema.get("properties", {}).get(step) or next(filter(None, others), None)
    return below if isinstance(below, dict) else {}


def _item(value: Any, step: str | int) -> Any:
    try:
        return value[step]
    except (LookupError, TypeError):
        return None


def requirement(error: ErrorDetails) -> str:
    """The requirement that a value does not meet, as ``it must be at least 1``."""
    kind, context = error["type"], error.get("ctx", {})
    match kind:
        case "greater_than_equal":
            return f"it must be at least {_number(context['ge'])}"
        case "greater_than":
            return f"it must be above {_number(context['gt'])}"
        case "less_than_equal":
            return f"it must be at most {_number(context['le'])}"
        case "less_than":
            return f"it must be below {_number(context['lt'])}"
        case "finite_number":
            return "it must be finite"
        case "literal_error":
            return f"it must be {context['expected']}"
        case "string_pattern_mismatch":
            return f"it must match {context['pattern']}"
        case "too_short" | "string_too_short":
            return f"it must have at least {_count(context['min_length'], kind)}"
        case "too_long" | "string_too_long":
            return f"it must have at most {_count(context['max_length'], kind)}"
        case "value_error" | "assertion_error":
            return str(context["error"])
    expected = _TYPES.get(kind.partition("_")[0])
    return f"it must be {expected}" if expected else error["msg"]


def _accepted(schema: Schema, root: Schema) -> str:
    """Accepted values of a field, as ``an integer of at least 1``."""
    return _alternatives(_words(branch, root) for branch in _branches(schema, root))


def _words(schema: Schema, root: Schema) -> str:
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return _alternatives(map(repr, schema["enum"]))
    match schema.get("type"):
        case "integer":
            return f"an integer{_range(schema)}"
        case "number":
            return f"a number{_range(schema)}"
        case "string" if "maxLength" in schema:
            return f"a string of {schema.get('minLength', 0)} to {schema['maxLength']} characters"
        case "string":
            return "a string"
        case "boolean":
            return "true or false"
        case "array" if "items" in schema:
            least, most = schema.get("minItems", 0), schema.get("maxItems")
            number = f"{least} to {most} " if most else f"{least} or more " if least else ""
            item = _accepted(schema["items"], root)
            plural = _PLURALS.get(item)
            return f"a list of {number}{plural or f'items, each {item}'}"
        case "array":
            return "a list"
    return "an object"


def _range(schema: Schema) -> str:
    bounds = {
        "of at least": schema.get("minimum"),
        "above": schema.get("exclusiveMinimum"),
        "of at most": schema.get("maximum"),
        "below": schema.get("exclusiveMaximum"),
    }
    words = [f"{word} {_number(bound)}" for word, bound in bounds.items() if bound is not None]
    return f" {' and '.join(words)}" if words else ""


def _alternatives(names: Iterable[str]) -> str:
    """The names as ``a, b or c``."""
    *most, last = dict.fromkeys(names)
    return f"{', '.join(most)} or {last}" if most else last


def _count(length: int, kind: str) -> str:
    unit = "character" if kind.startswith("string") else "item"
    return f"{length} {unit}{'' if length == 1 else 's'}"


def _number(bound: Any) -> str:
    return f"{bound:.15g}" if isinstance(bound, float) else str(bound)
