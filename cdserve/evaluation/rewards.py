"""The scoring reward and the held-out reward of an evaluation."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cdserve.client.answers import Client
from cdserve.config import PythonReward
from cdserve.errors import ConfigError, safe_repr
from cdserve.prompts import Prompt
from cdserve.scoring import Response, Reward, build

_FUNCTION = "gold"


class Rewards:
    """The scoring reward and, if any, the held-out reward.

    Args:
        reward: name of a server reward; None for the server's default.
        gold: name of a server reward, or ``module:function``; None for no held-out reward.
        server: response of ``GET /v1/alignment``.

    Raises:
        ConfigError: the server has no such reward, or the function cannot be imported.
    """

    def __init__(self, reward: str | None, gold: str | None, server: Mapping[str, Any]) -> None:
        available = server["rewards"]
        defaults = [name for name, terms in available.items() if terms["default"]]
        names = ", ".join(available) or "none"
        if reward is None and not defaults:
            raise ConfigError(
                f"--reward is required: the server has no default reward; it has {names}"
            )
        self.name: str = defaults[0] if reward is None else reward
        self.gold = gold
        self._function = function(gold)
        for flag, name in (("--reward", self.name), ("--gold", gold)):
            if name is not None and ":" not in name and name not in available:
                raise ConfigError(f"{flag} is {safe_repr(name)}; the server has {names}")
        if gold == self.name:
            raise ConfigError(f"--gold is {gold}, the scoring reward itself; choose another reward")
        self._names = [self.name] if gold is None or self._function else [self.name, gold]
        self._prompts: dict[int, str] = {}

    async def measure(
        self, client: Client, number: int, prompt: Prompt, text: str
    ) -> tuple[float, float | None]:
        """The scoring reward and the held-out reward of an answer, each in its own units.

        Raises:
            ConfigError: a reward fails or is not finite.
        """
        (rewards,) = await client.score(prompt, [text], self._names)
        for name in self._names:
            if name not in rewards:
                raise ConfigError(f"the server reward {name} failed on {safe_repr(text)}")
        if self._function is None:
            return rewards[self.name], None if self.gold is None else rewards[self.gold]
        if number not in self._prompts:
            self._prompts[number] = await client.prompt_text(prompt)
        return rewards[self.name], await self._call_function(self._prompts[number], text)

    async def _call_function(self, prompt: str, text: str) -> float:
        assert self._function is not None
        response = Response(prompt=prompt, text=text, tokens=0, finished=True, values={})
        try:
            (reward,) = await self._function.score([response])
        except Exception as error:  # a user's function may raise anything
            raise ConfigError(
                f"--gold {self.gold} failed on {safe_repr(text)}: {error!r}"
            ) from error
        if not math.isfinite(reward):
            raise ConfigError(
                f"--gold {self.gold} is {reward} for {safe_repr(text)}; it must be finite"
            )
        return reward


def function(gold: str | None) -> Reward | None:
    """The held-out reward if it is a ``module:function``, else None.

    Raises:
        ConfigError: the function cannot be imported.
    """
    if gold is None or ":" not in gold:
        return None
    try:
        settings = PythonReward(kind="python", callable=gold)
    except ValidationError as error:
        raise ConfigError(
            f"--gold is {safe_repr(gold)}; it must be NAME or MODULE:FUNCTION"
        ) from error
    try:
        return build({_FUNCTION: settings})[_FUNCTION]
    except ConfigError as error:
        message = str(error).removeprefix(f"rewards.{_FUNCTION}.callable: ")
        raise ConfigError(f"--gold: {message}") from error
