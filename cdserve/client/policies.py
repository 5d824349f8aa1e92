"""Policies by name, as a command's user writes them; a sweep is one policy a value."""

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
    """What goes into a request's ``alignment``.

    Attributes:
        name: for people and for files, unlike any other's.
        alignment: an object, or a preset's name.
        sweep: the name of the sweep that it is a point of; None for one alone.
        setting: what the sweep sets it to, such as ``n=4``; empty for one alone.
    """

    name: str
    alignment: dict[str, Any] | str
    sweep: str | None = None
    setting: str = ""


def read_policies(path: Path | None, given: Sequence[str]) -> list[NamedPolicy]:
    """The policies of a YAML or JSON file and of the command line, in order.

    A file maps names to policies: objects as the server takes them, or names of presets. An object
    may also have ``sweep``, which maps its fields to lists of values: it stands for one policy for
    each combination of them. On the command line a policy is ``"method field=value ..."``, a JSON
    object, or a preset's name; ``field=1,2,4`` is a sweep.

    Raises:
        ConfigError: the file cannot be read, something in it is no policy, or two have one name.
    """
    named = [] if path is None else list(_of_file(path))
    named += [policy for one in given for policy in _of_argument(one)]
    seen: set[str] = set()
    for policy in named:
        if policy.name in seen:
            raise ConfigError(f"two policies are named {policy.name!r}")
        seen.add(policy.name)
    return named


class _NamesOnce(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, where YAML's own loader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} stands here twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _of_file(path: Path) -> Iterator[NamedPolicy]:
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _NamesOnce)
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: the policies cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is {safe_repr(found)}; it must map names to policies")
    for name, sent in found.items():
        yield from _swept(str(name), sent, f"{path}: {name}")


def _of_argument(given: str) -> Iterator[NamedPolicy]:
    where = f"--policy {safe_repr(given)}"
    if given.lstrip().startswith("{"):
        try:
            sent = json.loads(given)
        except ValueError as error:
            raise ConfigError(f"{where} is no JSON: {error}") from error
        yield from _swept(_named(sent), sent, where)
        return
    method, *fields = given.split() or [""]
    if not method:
        raise ConfigError(f"{where} is empty; a policy is a preset's name or a method with fields")
    if not fields:
        yield NamedPolicy(method, {"method": method} if method == "none" else method)
        return
    sent = {"method": method, SWEEP: {}}
    for one in fields:
        key, found, value = one.partition("=")
        if not (key and found and value):
            raise ConfigError(f"{where} has {safe_repr(one)}; fields are written field=value")
        values = _values(value, f"{where}: {key}")
        if key in sent or key in sent[SWEEP]:
            raise ConfigError(f"{where} has {key} twice")
        if len(values) > 1:
            sent[SWEEP][key] = values
        else:
            sent[key] = values[0]
    fixed = [one for one in fields if one.partition("=")[0] in sent]
    yield from _swept(" ".join([method, *fixed]), sent, where)


def _values(written: str, where: str) -> list[Any]:
    """One value, or several with commas between them; a list's own commas are no such."""
    try:
        found = yaml.safe_load(f"[{written}]")
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is {safe_repr(written)}, no value: {error}") from error
    return [_number(value) for value in found]


def _number(value: Any) -> Any:
    """A number that YAML 1.1 takes for text, such as 1e-3."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _swept(name: str, sent: Any, where: str) -> Iterator[NamedPolicy]:
    if isinstance(sent, str):
        yield NamedPolicy(name, sent)
        return
    if not isinstance(sent, dict) or not isinstance(sent.get("method"), str):
        raise ConfigError(
            f"{where} is {safe_repr(sent)}; a policy is a preset's name or an object with a method"
        )
    policy = {key: value for key, value in sent.items() if key != SWEEP}
    swept = sent.get(SWEEP) or {}
    if not (isinstance(swept, Mapping) and all(isinstance(v, list) and v for v in swept.values())):
        raise ConfigError(
            f"{where}: {SWEEP} is {safe_repr(swept)}; it maps fields to lists of values"
        )
    if not swept:
        yield NamedPolicy(name, policy)
        return
    for values in product(*swept.values()):
        point = dict(zip(swept, values, strict=True))
        setting = ", ".join(f"{key}={_short(value)}" for key, value in point.items())
        yield NamedPolicy(f"{name} {setting}", {**policy, **point}, name, setting)


def _named(sent: Any) -> str:
    if not isinstance(sent, dict):
        return ""
    fixed = [f"{k}={_short(v)}" for k, v in sent.items() if k not in ("method", SWEEP)]
    return " ".join([str(sent.get("method")), *fixed])


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
