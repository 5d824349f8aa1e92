"""Rewards: functions of responses, scored in batches, and the operator's options for them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cdserve.scoring.held_out import HeldOut

Floats = npt.NDArray[np.float64]
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
    token_sums: Mapping[str, Floats] = field(default_factory=dict)
    """Sums of each statistic that the engine computed of the tokens, as ``token_sums`` returns."""
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


def token_sums(blocks: Sequence[Floats]) -> Floats:
    """Sums of a statistic over the first 0, 1, ..., n tokens of consecutive blocks, ``[n + 1]``.

    Args:
        blocks: the statistic of each token of each block.
    """
    sums: Floats = np.concatenate([np.zeros(1), *blocks]).cumsum()
    return sums


class Reward(ABC):
    """A function of responses."""

    kind: ClassVar[str]
    prefixes: bool = False
    """Whether the reward is defined for unfinished responses."""
    per_token: bool = False
    """Whether ``per_token`` requests get a value per token; true of what the engine computes."""
    reads_text: bool = False
    reads_values: bool = False
    token_stats: frozenset[str] = frozenset()
    """Statistics of the response's tokens that the reward reads, as ``worker.token_stats`` names
    them: a model (``base`` or a member) for log p, in nats, or a confidence."""
    options: RewardOptions = RewardOptions()
    held_out: HeldOut | None = None
    """Figures on held-out responses; None unless a head of mean values has been measured."""

    @abstractmethod
    async def score(self, responses: Sequence[Response]) -> Sequence[float]:
        """Reward of each response, or value if it is unfinished, in the reward's own units."""
