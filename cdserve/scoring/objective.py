"""A request's objective: the weighted sum of rewards it asks for."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdserve.decoders.candidate import Score
from cdserve.errors import PolicyError, ScoringError, shown
from cdserve.policy import FIELD, Policy
from cdserve.scoring.rewards import Response, Reward, finite


@dataclass(frozen=True, slots=True)
class Objective:
    """Rewards with their weights."""

    weights: Mapping[str, float]
    rewards: Mapping[str, Reward]

    @property
    def reads_values(self) -> bool:
        """Whether the engine has to compute values."""
        return any(reward.kind == "value_head" for reward in self.rewards.values())

    @property
    def reads_text(self) -> bool:
        """Whether responses have to be detokenised to be scored."""
        return any(reward.reads_text for reward in self.rewards.values())

    async def score(self, responses: Sequence[Response]) -> list[Score]:
        """The weighted sum and its parts, for each response.

        Raises:
            ScoringError: a reward failed or is not a finite number.
        """
        if self.reads_text:  # an operator's function may take its time
            return await asyncio.to_thread(self._score, responses)
        return self._score(responses)

    def _score(self, responses: Sequence[Response]) -> list[Score]:
        return [self._one(response) for response in responses]

    def _one(self, response: Response) -> Score:
        values: dict[str, float] = {}
        for name, reward in self.rewards.items():
            try:
                values[name] = reward(response)
            except Exception as error:  # an operator's function may raise anything
                raise ScoringError(f"reward {name!r} failed: {error}") from error
            if not finite(values[name]):
                raise ScoringError(f"reward {name!r} is {values[name]}, not a finite number")
        total = sum(self.weights[name] * value for name, value in values.items())
        if not finite(total):
            raise ScoringError(f"the weighted sum of the rewards is {total}, not a finite number")
        return Score(total, values)


def objective(
    policy: Policy,
    rewards: Mapping[str, Reward],
    default: str | None,
) -> Objective:
    """What a policy asks to maximise.

    Raises:
        PolicyError: a reward is not known, or cannot score what the method needs scored.
    """
    weights = policy.rewards
    if weights is None:
        if default is None and not policy.needs_rewards:
            return Objective({}, {})
        if default is None:
            raise PolicyError(
                f"{FIELD}.rewards is missing, and this server has no default reward; "
                f"it has {', '.join(sorted(rewards)) or 'none'}",
                f"{FIELD}.rewards",
            )
        weights = {default: 1.0}
    for name in weights:
        if name not in rewards:
            raise PolicyError(
                f"{FIELD}.rewards names {shown(name)}; "
                f"this server has {', '.join(sorted(rewards)) or 'none'}",
                f"{FIELD}.rewards",
            )
        if policy.scores_prefixes and not rewards[name].prefixes:
            raise PolicyError(
                f"{FIELD}.rewards.{name} scores finished responses only, and "
                f"{policy.method!r} scores prefixes; use it with 'best_of_n'",
                f"{FIELD}.rewards.{name}",
            )
    return Objective(weights, {name: rewards[name] for name in weights})
