"""Rewards that are a computation of the server's own: heads' values, length, text, functions."""

import asyncio
import json
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from cdserve.scoring.reward import Response, Reward


class AtOnce(Reward):
    """A reward that is computed one response at a time, in no time."""

    @abstractmethod
    def __call__(self, response: Response) -> float:
        """The reward of one response."""

    async def score(self, responses: Sequence[Response]) -> list[float]:
        return [self(response) for response in responses]


class ValueHead(AtOnce):
    """V of the prefix, from a head inside the engine (arXiv 2310.17022)."""

    kind: ClassVar[str] = "value_head"
    prefixes = True
    reads_values = True

    def __init__(self, name: str, scores: str) -> None:
        self._name = name
        self.scores = scores
        """``mean`` or ``soft``: what kind of value the head declares to be."""

    def __call__(self, response: Response) -> float:
        return response.values[self._name]


class Length(AtOnce):
    """−(distance of the length from the target, beyond the tolerance) / target, in tokens.

    An unfinished response can still reach the target, so only overshoot counts against it.
    """

    kind: ClassVar[str] = "length"
    prefixes = True

    def __init__(self, target: int, tolerance: int) -> None:
        self._target = target
        self._tolerance = tolerance

    def __call__(self, response: Response) -> float:
        distance = response.tokens - self._target
        if response.finished:
            distance = abs(distance)
        return -max(0, distance - self._tolerance) / self._target


class Regex(AtOnce):
    """1 if a pattern is found in the finished response, else 0."""

    kind: ClassVar[str] = "regex"
    reads_text = True

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)

    def __call__(self, response: Response) -> float:
        return float(self._pattern.search(response.text) is not None)


class JsonValid(AtOnce):
    """1 if the finished response is one JSON value, else 0."""

    kind: ClassVar[str] = "json_valid"
    reads_text = True

    def __call__(self, response: Response) -> float:
        try:
            json.loads(response.text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


class Python(AtOnce):
    """The operator's own function of prompt and finished response."""

    kind: ClassVar[str] = "python"
    reads_text = True

    def __init__(self, function: Callable[[str, str], float]) -> None:
        self._function = function

    def __call__(self, response: Response) -> float:
        return float(self._function(response.prompt, response.text))

    async def score(self, responses: Sequence[Response]) -> list[float]:
        """In a thread: a function may take its time. One that is given up on runs to its end."""
        return await asyncio.to_thread(lambda: [self(response) for response in responses])
