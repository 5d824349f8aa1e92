"""Rewards: what the search maximises. Each says what it can score."""

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from cdserve import config
from cdserve.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What a reward sees of a response or of a prefix of one."""

    prompt: str
    text: str
    """The whole response so far; empty unless a reward reads text."""
    tokens: int
    finished: bool
    values: Mapping[str, float]
    """V by reward name, as the engine computed it."""


class Reward(Protocol):
    """A function of a response."""

    kind: ClassVar[str]
    prefixes: ClassVar[bool]
    """Whether it has a meaning for unfinished responses."""
    reads_text: ClassVar[bool]

    def __call__(self, response: Response) -> float:
        """The reward, or its value for an unfinished response, in its own units."""
        ...


class ValueHead:
    """V of the prefix, from a head inside the engine (arXiv 2310.17022)."""

    kind: ClassVar[str] = "value_head"
    prefixes: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False

    def __init__(self, name: str, scores: str) -> None:
        self._name = name
        self.scores = scores
        """``mean`` or ``soft``: what kind of value the head declares to be."""

    def __call__(self, response: Response) -> float:
        return response.values[self._name]


class Length:
    """−(distance of the length from the target, beyond the tolerance) / target, in tokens.

    An unfinished response can still reach the target, so only overshoot counts against it.
    """

    kind: ClassVar[str] = "length"
    prefixes: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False

    def __init__(self, target: int, tolerance: int) -> None:
        self._target = target
        self._tolerance = tolerance

    def __call__(self, response: Response) -> float:
        distance = response.tokens - self._target
        if response.finished:
            distance = abs(distance)
        return -max(0, distance - self._tolerance) / self._target


class Python:
    """The operator's own function of prompt and finished response."""

    kind: ClassVar[str] = "python"
    prefixes: ClassVar[bool] = False
    reads_text: ClassVar[bool] = True

    def __init__(self, function: Callable[[str, str], float]) -> None:
        self._function = function

    def __call__(self, response: Response) -> float:
        return float(self._function(response.prompt, response.text))


def build(name: str, settings: config.Reward, head_kind: str | None) -> Reward:
    """The reward that ``settings`` describe.

    Args:
        head_kind: for a value head, its declared kind.

    Raises:
        ConfigError: a callable cannot be imported.
    """
    match settings:
        case config.ValueHeadReward():
            return ValueHead(name, head_kind or "mean")
        case config.LengthReward():
            return Length(settings.target, settings.tolerance)
        case config.PythonReward():
            return Python(_imported(name, settings.callable))


def _imported(name: str, path: str) -> Callable[[str, str], float]:
    module, function = path.split(":")
    try:
        found = vars(importlib.import_module(module))[function]
    except (ImportError, KeyError) as error:
        raise ConfigError(f"rewards.{name}.callable: {path} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"rewards.{name}.callable: {path} is not callable")
    result: Callable[[str, str], float] = found
    return result


def finite(value: float) -> bool:
    """Whether a reward may be compared: neither NaN nor infinite."""
    return math.isfinite(value)
