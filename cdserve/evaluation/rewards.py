"""The rewards that all answers are measured by: the server's, and a function of the user's."""

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
    """The scoring reward and, where there is one, the held-out reward.

    Args:
        reward: a name of the server's; None for its default.
        gold: a name of the server's, or ``module:function``; None for no held-out reward.
        server: what ``GET /v1/alignment`` says.

    Raises:
        ConfigError: the server has no such reward, or the function cannot be imported.
    """

    def __init__(self, reward: str | None, gold: str | None, server: Mapping[str, Any]) -> None:
        found = server["rewards"]
        defaults = [name for name, one in found.items() if one["default"]]
        names = ", ".join(found) or "none"
        if reward is None and not defaults:
            raise ConfigError(f"--reward is needed: the server has no default; it has {names}")
        self.name: str = defaults[0] if reward is None else reward
        self.gold = gold
        self._function = function(gold)
        for flag, name in (("--reward", self.name), ("--gold", gold)):
            if name is not None and ":" not in name and name not in found:
                raise ConfigError(f"{flag} is {safe_repr(name)}; the server has {names}")
        if gold == self.name:
            raise ConfigError(f"--gold is {gold}, the scoring reward itself; name another reward")
        self._names = [self.name] if gold is None or self._function else [self.name, gold]
        self._prompts: dict[int, str] = {}

    async def measure(
        self, client: Client, number: int, prompt: Prompt, text: str
    ) -> tuple[float, float | None]:
        """The scoring and the held-out reward of an answer to a prompt, in their own units.

        Raises:
            ConfigError: one of them fails or is not finite.
        """
        (found,) = await client.score(prompt, [text], self._names)
        for name in self._names:
            if name not in found:
                raise ConfigError(f"the reward {name} fails on the server for {safe_repr(text)}")
        if self._function is None:
            return found[self.name], None if self.gold is None else found[self.gold]
        if number not in self._prompts:
            self._prompts[number] = await client.prompt_text(prompt)
        return found[self.name], await self._of_function(self._prompts[number], text)

    async def _of_function(self, prompt: str, text: str) -> float:
        assert self._function is not None
        response = Response(prompt=prompt, text=text, tokens=0, finished=True, values={})
        try:
            (made,) = await self._function.score([response])
        except Exception as error:  # a user's function may raise anything
            raise ConfigError(
                f"--gold {self.gold} fails on {safe_repr(text)}: {error!r}"
            ) from error
        if not math.isfinite(made):
            raise ConfigError(f"--gold {self.gold} is {made} for {safe_repr(text)}; not finite")
        return made


def function(gold: str | None) -> Reward | None:
    """A held-out reward that is a ``module:function``; None if it is none.

    Raises:
        ConfigError: it cannot be imported.
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
        said = str(error).removeprefix(f"rewards.{_FUNCTION}.callable: ")
        raise ConfigError(f"--gold: {said}") from error
