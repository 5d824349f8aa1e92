"""What a decoder works on: candidates, their scores, and the decision between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One continuation of the accepted prefix: a block of at most M tokens, or a whole response."""

    token_ids: tuple[int, ...]
    finish_reason: str | None
    """``stop``: it ended by itself (EOS, a stop token or string); ``length``: the response is
    at ``max_tokens``; ``deadline``: no time is left; None: a block that goes on. Others as vLLM
    reports them."""
    stop_reason: int | str | None = None
    """The stop token or string, as vLLM reports it; None for EOS."""
    text: str = ""
    """The block's text; filled in only where something reads it (a trace, a text reward)."""
    values: Mapping[str, float] = field(default_factory=dict)
    """V of the prefix with this block, a value head's name each, in raw reward units."""
    loglik: Mapping[str, float] = field(default_factory=dict)
    """log p of the block by model (``base`` or a member), in nats, where a reward reads it."""
    logprobs: Any = None
    """vLLM's logprobs of the tokens, where the request asked for them."""
    cumulative_logprob: float | None = None
    """log p of the block in nats, where the request asked for logprobs."""
    kl: float | None = None
    """KL of its tokens' distributions from the base model's, in nats, where they are steered."""
    unsteered: int = 0
    """Tokens that a budget left to the base model's distribution."""
    cut: bool = False
    """Whether the deadline ended it before its block or response was whole."""


@dataclass(frozen=True, slots=True)
class Score:
    """A candidate's rewards and their weighted sum."""

    total: float
    rewards: Mapping[str, float]
    failed: tuple[str, ...] = ()
    """Rewards that could not be computed, and that the operator lets a decision do without."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What each reward that has a weight adds to the sum, standardised where the operator says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One selection: the candidates in the order they were drawn, and the index taken."""

    candidates: Sequence[Candidate]
    scores: Sequence[Score]
    chosen: int
    tie: bool
    """Whether the two best scores were equal."""
    kl_bound: float
    """Bound on this decision's KL from the proposal, in nats."""
    kl_estimate: float
    """Estimate of the same, in nats."""
    kl_estimator: str
    """How it was estimated."""
    limited: bool = False
    """Whether a budget left it fewer candidates than were asked for."""
    accepted: bool | None = None
    """Whether the candidate passed the rule's own test; None for rules that have none."""

    @property
    def candidate(self) -> Candidate:
        """The candidate taken."""
        return self.candidates[self.chosen]

    @property
    def score(self) -> Score:
        """Its score."""
        return self.scores[self.chosen]


Prefix = tuple[Candidate, ...]
"""The candidates taken so far, one a decision; none of them is the prompt alone."""


class Proposal(Protocol):
    """Where candidates come from: what continues one prompt."""

    @property
    def deadline_passed(self) -> bool:
        """Whether the deadline has passed: what is sampled from then on has no tokens."""
        ...

    async def sample(
        self,
        prefixes: Sequence[Prefix],
        count: int,
        max_tokens: int | None,
        budget: float | None = None,
    ) -> Sequence[Candidate]:
        """``count`` i.i.d. continuations of each prefix, those of the first one first.

        Args:
            prefixes: none of them has ended.
            max_tokens: block length in tokens; None runs each to the end of the response.
            budget: nats that the steering of each may cost; None for no limit.
        """
        ...

    async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        """The request's rewards of each prefix, ended or not; of the prompt alone too."""
        ...
