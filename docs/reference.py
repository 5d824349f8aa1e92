"""Generates the reference from the classes of requests, settings and the report.

python -m docs.reference > docs/reference.md
"""

import json
from collections.abc import Iterator, Mapping
from inspect import getdoc
from typing import Any

from fastapi.routing import APIRoute
from prometheus_client.metrics import MetricWrapperBase
from pydantic import TypeAdapter

from cdserve import decoders
from cdserve.api import answers, playground, routes
from cdserve.api.scoring import ScoreRequest
from cdserve.config import Settings
from cdserve.observability import metrics
from cdserve.report import Report

Schema = Mapping[str, Any]
ANSWER = ("key", "type", "meaning")
INSIDE = {"items": "each", "additionalProperties": "each", "propertyNames": "names"}
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

INTRODUCTION = """# Reference

Every field of policies, reports and settings, every route and every metric, generated from the code
by `python -m docs.reference > docs/reference.md`; a test keeps the page up to date.
[The API](api.md), [the settings](settings.md) and [the methods](methods.md) introduce them. Unknown
fields and values out of range are refused; the error names the field.
"""
ROUTES = """## Routes

In addition to the routes of vLLM's OpenAI server.
"""
POLICIES = """## Policies

The field `alignment` of a request is a preset's name, or an object with one of these methods.
`method` may also be `none`, which has no other fields. `GET /v1/alignment` returns the JSON
schemas, including those of installed decoders. The operator's [limits](#limits) may be narrower
than these ranges.
"""
REPORT = """## The report

`alignment` in an answer, and at the end of a stream ([position by API](api.md#four-apis)). In a
stream with `report: "trace"`, events with text also have `alignment_decisions`, a list of
[TracedDecision](#traceddecision).
"""
OTHERS = """## Discovery and scoring

Request body of `POST /v1/alignment/score`, then the answers of that route and of
`GET /v1/alignment`.
"""
SETTINGS = """## Settings

The YAML file of `cdserve serve --config`. `--set limits.max_n=8` sets a key on the command line,
`CDSERVE_LIMITS__MAX_N=8` in the environment.
"""
METRICS = """## Metrics

On `GET /metrics`, in addition to vLLM's. Histograms have `_bucket`, `_sum` and `_count`.
"""


def page() -> str:
    """The whole page."""
    parts = [
        INTRODUCTION,
        ROUTES,
        table(("route", "purpose"), of_routes()),
        POLICIES,
        *of_policies(),
        REPORT,
        *of_models({"Report": TypeAdapter(Report).json_schema()}, ANSWER),
        OTHERS,
        *of_models({"ScoreRequest": ScoreRequest.model_json_schema()}),
        *of_models({"ScoreAnswer": answers.ScoreAnswer.model_json_schema()}, ANSWER),
        *of_models({"Description": answers.Description.model_json_schema()}, ANSWER),
        SETTINGS,
        *of_models({"Settings": Settings.model_json_schema()}),
        METRICS,
        table(("metric", "type", "labels", "meaning"), of_metrics()),
    ]
    return "\n".join(parts)


def of_routes() -> Iterator[tuple[str, ...]]:
    """cdserve's routes, each with its purpose."""
    for route in [*routes.router.routes, *playground.router.routes]:
        assert isinstance(route, APIRoute)
        (method,) = route.methods
        yield f"`{method} {route.path}`", first_line(getdoc(route.endpoint) or "")


def of_policies() -> list[str]:
    """Sections for the methods' policies, then for the types of their fields."""
    built_in = decoders.load([])
    return of_models({name: built_in[name].policy.model_json_schema() for name in sorted(built_in)})


def of_models(
    schemas: Mapping[str, Schema],
    columns: tuple[str, ...] = ("field", "type", "default", "range", "meaning"),
) -> list[str]:
    """Sections for the schemas, then for the schemas that they refer to."""
    sections = dict(schemas)
    for schema in schemas.values():
        for name, inside in schema.get("$defs", {}).items():
            sections.setdefault(name, inside)
    titles = {name: title(name, schema) for name, schema in sections.items()}
    return [section(titles, name, schema, columns) for name, schema in sections.items() if schema]


def section(titles: Mapping[str, str], name: str, schema: Schema, columns: tuple[str, ...]) -> str:
    """The heading, the description and the fields of one schema."""
    if "$ref" in schema:  # a recursive schema is in its own definitions
        schema = schema["$defs"][name]
    required = schema.get("required", ())
    rows = []
    for field, property in schema["properties"].items():
        cells = {
            "type": type_of(property, titles),
            "default": "required" if field in required else default_of(property),
            "range": range_of(property),
            "meaning": property.get("description", ""),
        }
        rows.append((f"`{field}`", *(cells[column] for column in columns[1:])))
    about = prose(schema.get("description", ""))
    return f"### {titles[name]}\n\n{about}\n\n{table(columns, rows)}"


def title(name: str, schema: Schema) -> str:
    """A schema's heading: its ``kind``, if it is one of several alternatives."""
    kind = schema.get("properties", {}).get("kind", {})
    return str(kind.get("const", name))


def type_of(schema: Schema, titles: Mapping[str, str]) -> str:
    """A property's type, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{titles[name]}](#{titles[name].lower()})"
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(type_of(branch, titles) for branch in branches))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values:
        return " or ".join(f"`{json.dumps(value)}`" for value in values)
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"[{', '.join(type_of(item, titles) for item in schema['prefixItems'])}]"
        case "array":
            return f"list of {type_of(schema['items'], titles)}"
        case "object" if isinstance(schema.get("additionalProperties"), Mapping):
            return f"name: {type_of(schema['additionalProperties'], titles)}"
        case "object" if "patternProperties" in schema:
            (inside,) = schema["patternProperties"].values()
            return f"name: {type_of(inside, titles)}"
        case None:
            return "any"
        case name:
            return str(name)


def default_of(schema: Schema) -> str:
    """A property's default, as Markdown."""
    if "default" not in schema:
        return "`[]`" if schema.get("type") == "array" else "`{}`"
    default = schema["default"]
    if default is None:
        return ""
    return "its defaults" if isinstance(default, dict) else f"`{json.dumps(default)}`"


def range_of(schema: Schema) -> str:
    """The accepted values of a property, beyond its type."""
    if "prefixItems" in schema:
        return ""
    ranges = [
        f"> {number(schema['exclusiveMinimum'])}" if "exclusiveMinimum" in schema else "",
        between(schema, "minimum", "maximum"),
        f"< {number(schema['exclusiveMaximum'])}" if "exclusiveMaximum" in schema else "",
        between(schema, "minLength", "maxLength", " characters"),
        f"`{schema['pattern']}`" if "pattern" in schema else "",
        between(schema, "minItems", "maxItems", " entries"),
        between(schema, "minProperties", "maxProperties", " entries"),
        *(range_of(branch) for branch in schema.get("anyOf") or schema.get("oneOf") or ()),
    ]
    ranges += [f"names `{pattern}`" for pattern in schema.get("patternProperties", ())]
    for key, word in INSIDE.items():
        inside = schema.get(key)
        if isinstance(inside, Mapping) and (limits := range_of(inside)):
            ranges.append(f"{word} {limits}")
    return ", ".join(dict.fromkeys(filter(None, ranges)))


def between(schema: Schema, least: str, most: str, what: str = "") -> str:
    """A closed range in words; empty without bounds."""
    low, high = schema.get(least), schema.get(most)
    if low is not None and high is not None:
        return f"{number(low)} to {number(high)}{what}"
    if low is not None:
        return f"≥ {number(low)}{what}"
    return "" if high is None else f"≤ {number(high)}{what}"


def number(value: float) -> str:
    """A number as Markdown; large and small powers of ten as powers."""
    digits = str(abs(int(value))) if float(value).is_integer() else f"{abs(value):g}"
    mantissa, _, exponent = f"{abs(value):e}".partition("e")
    if float(mantissa) == 1 and abs(int(exponent)) > 3:
        digits = f"10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return f"−{digits}" if value < 0 else digits


def of_metrics() -> Iterator[tuple[str, ...]]:
    """cdserve's metrics: name, type, labels and description."""
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            yield f"`{name}`", family.type, labels, family.documentation


def table(columns: tuple[str, ...], rows: Any) -> str:
    """A Markdown table."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines) + "\n"


def cell(text: str) -> str:
    """A text on one line, escaped for a table."""
    return prose(text).replace("\n", " ").replace("|", "\\|")


def prose(text: str) -> str:
    """A docstring as Markdown."""
    return text.replace("``", "`")


def first_line(text: str) -> str:
    """A docstring's first sentence."""
    return text.partition("\n")[0]


if __name__ == "__main__":
    print(page(), end="")
