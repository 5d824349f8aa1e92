"""What a reward is: a function of responses, scored in batches, and the operator's terms for it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

OnFailure = Literal["error", "skip", "base"]


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
    loglik: Mapping[str, float] = field(default_factory=dict)
    """log p of its tokens by model, ``base`` or a member, in nats, as the engine computed it."""
    messages: Sequence[Mapping[str, Any]] | None = None
    """A chat request's messages; None for one that has a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the operator declares of a reward beside its kind.

    Attributes:
        on_failure: what a decision does without it. ``error``: the request fails. ``skip``: the
            other rewards decide. ``base``: none decides, and the first candidate is taken, which is
            a draw of the proposal.
        timeout: seconds for the candidates of one decision; None for no bound.
        mean, std: the reward enters the weighted sum as (reward - mean) / std, so that rewards on
            different scales can be weighed. Answers report it raw.
    """

    on_failure: OnFailure = "error"
    timeout: float | None = None
    mean: float = 0.0
    std: float = 1.0

    def standardised(self, value: float) -> float:
        """A reward as it is weighed."""
        return (value - self.mean) / self.std


class Reward(ABC):
    """A function of responses."""

    kind: ClassVar[str]
    prefixes: bool = False
    """Whether it has a meaning for unfinished responses."""
    per_token: bool = False
    """Whether it is told token by token where that is asked for: what the engine computes."""
    reads_text: bool = False
    reads_values: bool = False
    models: frozenset[str] = frozenset()
    """Whose log-likelihoods of the response it reads: members, or ``base``."""
    terms: Terms = Terms()

    @abstractmethod
    async def score(self, responses: Sequence[Response]) -> Sequence[float]:
        """The reward of each response, or its value for an unfinished one, in its own units."""
