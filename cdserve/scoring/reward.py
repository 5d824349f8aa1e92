"""Rewards: functions of responses, scored in batches, and the operator's options for them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from cdserve.scoring.held_out import HeldOut

OnFailure = Literal["error", "skip", "base"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response, or a prefix of one, as a reward sees it."""

    prompt: str
    text: str
    """Text of the response so far; empty unless a reward reads text."""
    tokens: int
    finished: bool
    values: Mapping[str, float]
    """V by reward name, computed by the engine."""
    loglik: Mapping[str, float] = field(default_factory=dict)
    """log p of the response's tokens by model (``base`` or a member), in nats, by the engine."""
    messages: Sequence[Mapping[str, Any]] | None = None
    """Messages of a chat request; None for a request with a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOptions:
    """Options that the operator sets for a reward of any kind.

    Attributes:
        on_failure: what a decision does if the reward fails. ``error``: the request fails.
            ``skip``: the other rewards decide. ``base``: no reward decides, and the first candidate
            is selected, which is a draw from the proposal.
        timeout: seconds for the candidates of one decision; None for no limit.
        mean, std: the reward enters the weighted sum as (reward - mean) / std, so that rewards on
            different scales can be weighed. Answers report the raw reward.
    """

    on_failure: OnFailure = "error"
    timeout: float | None = None
    mean: float = 0.0
    std: float = 1.0

    @property
    def has_statistics(self) -> bool:
        """Whether ``mean`` and ``std`` are statistics of the reward, and not the neutral values."""
        return (self.mean, self.std) != (0.0, 1.0)

    def standardised(self, value: float) -> float:
        """The value as it enters a weighted sum."""
        return (value - self.mean) / self.std


class Reward(ABC):
    """A function of responses."""

    kind: ClassVar[str]
    prefixes: bool = False
    """Whether the reward is defined for unfinished responses."""
    per_token: bool = False
    """Whether ``per_token`` requests get a value per token; true of what the engine computes."""
    reads_text: bool = False
    reads_values: bool = False
    models: frozenset[str] = frozenset()
    """Models (members, or ``base``) whose log-likelihoods of the response the reward reads."""
    options: RewardOptions = RewardOptions()
    held_out: HeldOut | None = None
    """Figures on held-out responses; None unless a head of mean values has been measured."""

    @abstractmethod
    async def score(self, responses: Sequence[Response]) -> Sequence[float]:
        """Reward of each response, or value if it is unfinished, in the reward's own units."""
