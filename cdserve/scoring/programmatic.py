"""Rewards that the server computes by itself: of heads' values, likelihoods, length, text."""

import asyncio
import json
import re
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import ClassVar

from cdserve.errors import RewardFailure
from cdserve.scoring.reward import Response, Reward

_THREADS = 16
"""Calls of one function at once."""


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
    per_token = True
    reads_values = True

    def __init__(self, name: str, scores: str = "mean", prefixes: bool = True) -> None:
        self._name = name
        self.scores = scores
        """``mean`` or ``soft``: what kind of value the head declares to be."""
        self.prefixes = prefixes

    def __call__(self, response: Response) -> float:
        return response.values[self._name]


class LogLik(AtOnce):
    """log p of the response, or of a prefix, under a model inside the engine, in nats."""

    kind: ClassVar[str] = "loglik"
    prefixes = True
    per_token = True

    def __init__(self, model: str) -> None:
        self._model = model
        self.models = frozenset([model])

    def __call__(self, response: Response) -> float:
        return response.loglik[self._model]


class LogRatio(AtOnce):
    """β log p_tuned / p_reference of the response, or of a prefix (arXiv 2404.12358).

    Where the tuned model is the optimum of KL-regularised reward maximisation from the reference,
    as after DPO, it is the reward up to a constant of the prompt, and of a prefix the soft value
    up to the same constant.

    Args:
        beta: β, in units of the reward a nat.
    """

    kind: ClassVar[str] = "log_ratio"
    prefixes = True
    per_token = True

    def __init__(self, tuned: str, reference: str, beta: float) -> None:
        self._tuned = tuned
        self._reference = reference
        self._beta = beta
        self.models = frozenset([tuned, reference])

    def __call__(self, response: Response) -> float:
        return self._beta * (response.loglik[self._tuned] - response.loglik[self._reference])


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
    """The operator's own function of prompt and response.

    Args:
        function: is given both as text.
        prefixes: whether it has a meaning for unfinished responses.
    """

    kind: ClassVar[str] = "python"
    reads_text = True

    def __init__(self, function: Callable[[str, str], float], prefixes: bool = False) -> None:
        self._function = function
        self.prefixes = prefixes
        self._threads = asyncio.Semaphore(_THREADS)

    def __call__(self, response: Response) -> float:
        return float(self._function(response.prompt, response.text))

    async def score(self, responses: Sequence[Response]) -> list[float]:
        """In a thread: a function may take its time. One that is given up on runs to its end.

        Threads that never end hold up this reward alone, and neither other rewards nor the server's
        exit.
        """
        await self._threads.acquire()
        made: Future[list[float]] = Future()
        running = asyncio.wrap_future(made)
        running.add_done_callback(lambda _: self._threads.release())
        run = threading.Thread(target=self._run, args=(responses, made), name="reward", daemon=True)
        run.start()
        return await asyncio.shield(running)

    def _run(self, responses: Sequence[Response], made: "Future[list[float]]") -> None:
        try:
            made.set_result([self(response) for response in responses])
        except BaseException as error:
            # A future takes no StopIteration, and a SystemExit would end the server.
            harmless = isinstance(error, Exception) and not isinstance(error, StopIteration)
            reason = f"failed with {type(error).__name__}"
            made.set_exception(error if harmless else RewardFailure(reason, repr(error)))
