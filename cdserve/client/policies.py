"""Named policies from the command line and from files; a sweep is one policy per value."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from cdserve.errors import ConfigError, safe_repr

SWEEP = "sweep"
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """The ``alignment`` field of a request, with a name.

    Attributes:
        name: unique name in reports and file names.
        alignment: a policy object, or the name of a preset.
        sweep: name of the sweep that the policy is a point of; None outside a sweep.
        setting: the sweep's setting at this point, such as ``n=4``; empty outside a sweep.
    """

    name: str
    alignment: dict[str, Any] | str
    sweep: str | None = None
    setting: str = ""


def read_policies(path: Path | None, arguments: Sequence[str]) -> list[NamedPolicy]:
    """The policies of a YAML or JSON file and of the command line, in order.

    A file maps names to policies: objects as in a request, or names of presets. An object may have
    the further field ``sweep``, which maps fields to lists of values: one policy per combination.
    On the command line a policy is ``"method field=value ..."``, a JSON object, or a preset's name;
    ``field=1,2,4`` is a sweep.

    Raises:
        ConfigError: the file cannot be read, an entry is not a policy, or a name occurs twice.
    """
    named = [] if path is None else list(_from_file(path))
    named += [policy for argument in arguments for policy in _from_argument(argument)]
    seen: set[str] = set()
    for policy in named:
        if policy.name in seen:
            raise ConfigError(f"two policies are named {policy.name!r}")
        seen.add(policy.name)
    return named


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a mapping with a duplicate key; YAML's default loader takes the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key.value!r}", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _from_file(path: Path) -> Iterator[NamedPolicy]:
    try:
        policies = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: the policies cannot be read: {error}") from error
    if not isinstance(policies, dict):
        raise ConfigError(f"{path} is {safe_repr(policies)}; it must map names to policies")
    for name, alignment in policies.items():
        yield from _expand(str(name), alignment, f"{path}: {name}")


def _from_argument(argument: str) -> Iterator[NamedPolicy]:
    where = f"--policy {safe_repr(argument)}"
    if argument.lstrip().startswith("{"):
        try:
            alignment = json.loads(argument)
        except ValueError as error:
            raise ConfigError(f"{where} is not valid JSON: {error}") from error
        yield from _expand(_name(alignment), alignment, where)
        return
    method, *fields = argument.split() or [""]
    if not method:
        raise ConfigError(f"{where} is empty; a policy is a preset's name or a method with fields")
    if not fields:
        yield NamedPolicy(method, {"method": method} if method == "none" else method)
        return
    alignment = {"method": method, SWEEP: {}}
    for field in fields:
        key, equals, value = field.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"{where} has {safe_repr(field)}; fields are written field=value")
        values = _values(value, f"{where}: {key}")
        if key in alignment or key in alignment[SWEEP]:
            raise ConfigError(f"{where} has {key} twice")
        if len(values) > 1:
            alignment[SWEEP][key] = values
        else:
            alignment[key] = values[0]
    fixed = [field for field in fields if field.partition("=")[0] in alignment]
    yield from _expand(" ".join([method, *fixed]), alignment, where)


def _values(text: str, where: str) -> list[Any]:
    """The values of a comma-separated text; commas inside a list do not separate."""
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is {safe_repr(text)}, not a value: {error}") from error
    return [_number(value) for value in values]


def _number(value: Any) -> Any:
    """Converts a number that YAML 1.1 reads as text, such as 1e-3."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _expand(name: str, alignment: Any, where: str) -> Iterator[NamedPolicy]:
    if isinstance(alignment, str):
        yield NamedPolicy(name, alignment)
        return
    if not isinstance(alignment, dict) or not isinstance(alignment.get("method"), str):
        raise ConfigError(
            f"{where} is {safe_repr(alignment)}; "
            "a policy is a preset's name or an object with a method"
        )
    policy = {key: value for key, value in alignment.items() if key != SWEEP}
    sweep = alignment.get(SWEEP) or {}
    if not (isinstance(sweep, Mapping) and all(isinstance(v, list) and v for v in sweep.values())):
        raise ConfigError(f"{where}: {SWEEP} is {safe_repr(sweep)}; it must map fields to lists")
    if not sweep:
        yield NamedPolicy(name, policy)
        return
    for values in product(*sweep.values()):
        point = dict(zip(sweep, values, strict=True))
        setting = ", ".join(f"{key}={_format(value)}" for key, value in point.items())
        yield NamedPolicy(f"{name} {setting}", {**policy, **point}, name, setting)


def _name(alignment: Any) -> str:
    if not isinstance(alignment, dict):
        return ""
    fixed = [f"{k}={_format(v)}" for k, v in alignment.items() if k not in ("method", SWEEP)]
    return " ".join([str(alignment.get("method")), *fixed])


def _format(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
