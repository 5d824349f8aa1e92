"""Rewards that the server computes itself, from values, log p, lengths and text."""

import json
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from cdserve.scoring.functions import Threads
from cdserve.scoring.reward import Response, Reward


class SyncReward(Reward):
    """A reward that is a synchronous function of one response, called inline by default."""

    @abstractmethod
    def __call__(self, response: Response) -> float:
        """Reward of one response."""

    async def score(self, responses: Sequence[Response]) -> list[float]:
        return [self(response) for response in responses]


class ValueHead(SyncReward):
    """V of the prefix, from a head inside the engine (arXiv 2310.17022)."""

    kind: ClassVar[str] = "value_head"
    per_token = True
    reads_values = True

    def __init__(self, name: str, scores: str = "mean", prefixes: bool = True) -> None:
        self._name = name
        self.scores = scores
        """Kind of value that the head declares: ``mean`` or ``soft``."""
        self.prefixes = prefixes

    def __call__(self, response: Response) -> float:
        return response.values[self._name]


class LogLik(SyncReward):
    """log p of the response, or of a prefix, under a model inside the engine, in nats.

    Args:
        model: ``base`` or a member.
        mean: whether to divide by the number of tokens.
    """

    kind: ClassVar[str] = "loglik"
    prefixes = True
    per_token = True

    def __init__(self, model: str, *, mean: bool = False) -> None:
        self._model = model
        self._mean = mean
        self.token_stats = frozenset([model])

    def __call__(self, response: Response) -> float:
        log_p = float(response.token_sums[self._model][-1])
        return log_p / max(1, response.tokens) if self._mean else log_p


class LogRatio(SyncReward):
    """β log p_tuned / p_reference of the response, or of a prefix (arXiv 2404.12358).

    If the tuned model is the optimum of KL-regularised reward maximisation from the reference, as
    after DPO, the log-ratio is the reward up to a constant per prompt, and for a prefix it is the
    soft value up to the same constant.

    Args:
        beta: β, in reward units per nat.
    """

    kind: ClassVar[str] = "log_ratio"
    prefixes = True
    per_token = True

    def __init__(self, tuned: str, reference: str, beta: float) -> None:
        self._tuned = tuned
        self._reference = reference
        self._beta = beta
        self.token_stats = frozenset([tuned, reference])

    def __call__(self, response: Response) -> float:
        tuned, reference = (
            float(response.token_sums[model][-1]) for model in (self._tuned, self._reference)
        )
        return self._beta * (tuned - reference)


class Length(SyncReward):
    """−(distance of the length from the target, beyond the tolerance) / target, in tokens.

    An unfinished response can still reach the target, so only its overshoot counts.
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


class Regex(SyncReward):
    """1 if a pattern is found in the finished response, else 0."""

    kind: ClassVar[str] = "regex"
    reads_text = True

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)

    def __call__(self, response: Response) -> float:
        return float(self._pattern.search(response.text) is not None)


class JsonValid(SyncReward):
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
    raise ValueError(f"{constant} is not JSON")


class Python(SyncReward):
    """The operator's own function of prompt and response.

    Args:
        function: function of both texts.
        prefixes: whether the function is defined for unfinished responses.
    """

    kind: ClassVar[str] = "python"
    reads_text = True

    def __init__(self, function: Callable[[str, str], float], prefixes: bool = False) -> None:
        self._function = function
        self.prefixes = prefixes
        self._threads = Threads()

    def __call__(self, response: Response) -> float:
        return float(self._function(response.prompt, response.text))

    async def score(self, responses: Sequence[Response]) -> list[float]:
        """Reward of each response, computed in a thread, since the function may be slow."""
        return await self._threads.run(lambda: [self(response) for response in responses])
