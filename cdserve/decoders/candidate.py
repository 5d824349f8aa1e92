"""Candidates, their scores, and decisions between them: the data of every decoder."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One continuation of the accepted prefix: a block of at most M tokens, or a whole response."""

    token_ids: tuple[int, ...]
    finish_reason: str | None
    """``stop``: ended by itself (EOS, a stop token or string); ``length``: the response is at
    ``max_tokens``; ``deadline``: no time is left; None: the response goes on. Others as vLLM
    reports them."""
    stop_reason: int | str | None = None
    """The stop token or string, as vLLM reports it; None for EOS."""
    text: str = ""
    """The block's text; empty unless a trace, a text reward or a vote reads it."""
    withheld: int = 0
    """Characters at the end of the blocks before that begin a stop string which this block ends.
    They are not part of the response."""
    until: str | int | None = None
    """String or token of the policy's ``until`` that ended the block; None if none did."""
    answer: str | None = None
    """Answer in the text of a whole response, for a vote; None if there is none."""
    values: Mapping[str, float] = field(default_factory=dict)
    """V of the prefix including this block, by value head, in raw reward units."""
    token_stats: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, compare=False)
    """Statistics of each token of the block, ``[tokens]``, that the rewards read, by name."""
    logprobs: Any = None
    """vLLM's logprobs of the tokens, if the request asked for them."""
    cumulative_logprob: float | None = None
    """log p of the block, in nats, if the request asked for logprobs."""
    kl: float | None = None
    """KL of the tokens' distributions from the base model's, in nats; None without steering."""
    unsteered: int = 0
    """Tokens that a KL budget left unsteered, drawn from the base model's distribution."""
    cut: bool = False
    """Whether the deadline cut the block or response short."""


@dataclass(frozen=True, slots=True)
class Score:
    """A candidate's rewards and their weighted sum."""

    total: float
    rewards: Mapping[str, float]
    failed: tuple[str, ...] = ()
    """Rewards that failed, and that the operator's settings allow a decision to do without."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Contribution of each reward of nonzero weight to the sum, standardised if so configured."""
    rollout_tokens: int = 0
    """Length of the rollout that followed the prefix when it was scored, in tokens."""


@dataclass(frozen=True, slots=True)
class AnswerClass:
    """Candidates with the same answer in a vote."""

    answer: str
    count: int
    """Number of the candidates."""
    weight: float
    """Sum of the weights of the votes."""


@dataclass(frozen=True, slots=True)
class Votes:
    """Outcome of a vote."""

    classes: Sequence[AnswerClass]
    """Classes by falling weight, the winner first; of equal weights, the one begun first."""
    unanswered: int
    """Candidates that cast no vote: without an answer, or cut short by the deadline."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Verdicts of a judge on two responses, asked in both orders."""

    share: float
    """Mean of the two verdicts: 1 if the first response is better, 0 if the second one is, 1/2 for
    a tie."""
    agreed: bool
    """Whether the verdict is the same in both orders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparisons:
    """Comparisons of one decision."""

    judge: str
    made: int
    """Pairs compared, each in both orders."""
    disagreements: int
    """Pairs of ``made`` on which the verdict depends on the order."""
    missed: int
    """Pairs that the deadline left uncompared; each counts as a tie."""
    wins: Sequence[float]
    """Wins of each candidate, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawCounts:
    """Number of candidates drawn.

    Attributes:
        made: candidates begun, including those that were ended early.
        allowed: most candidates; the number begun if the deadline ended the draws.
        saved_tokens: estimate of the tokens that ``allowed`` whole candidates would have taken,
            less the tokens drawn.
    """

    made: int
    allowed: int
    saved_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One selection: the candidates in the order they were drawn, and the selected one's index."""

    candidates: Sequence[Candidate]
    scores: Sequence[Score]
    chosen: int
    tie: bool
    """Whether the two highest scores were equal."""
    kl_bound: float
    """Upper bound on this decision's KL divergence from the proposal, in nats."""
    kl_estimate: float
    """Estimate of this decision's KL divergence from the proposal, in nats."""
    kl_estimator: str
    """Name of the estimator of ``kl_estimate``, as docs/methods.md lists them."""
    limited: bool = False
    """Whether a KL budget allowed fewer candidates than were asked for."""
    accepted: bool | None = None
    """Whether the candidate passed the rule's own test; None for rules that have none."""
    exact: bool | None = None
    """Whether the candidate is a draw from the distribution asked for; None for rules that do not
    draw from one."""
    draws: DrawCounts | None = None
    """Numbers of candidates and tokens drawn, if the policy need not draw all; otherwise None."""
    searched: bool | None = None
    """Whether all allowed candidates were drawn; None without a gate."""
    votes: Votes | None = None
    """Outcome of the vote; None for other selections."""
    comparisons: Comparisons | None = None
    """Comparisons by a judge; None for other selections."""
    unused: Sequence[Candidate] = ()
    """Further candidates that had begun when the rule stopped; ended early or not considered."""

    @property
    def candidate(self) -> Candidate:
        """The selected candidate."""
        return self.candidates[self.chosen]

    @property
    def score(self) -> Score:
        """Score of the selected candidate."""
        return self.scores[self.chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Rest of a response after an unfinished prefix, as measured on held-out responses.

    Attributes:
        tokens: mean number of tokens still to come.
        deviation: standard deviation of the final reward from the value of the prefix.
        gains: expected rise of the final reward above the value, for the best of n = 1, 2, 4, ...
            such responses by their final values.
    """

    tokens: float
    deviation: float
    gains: Sequence[float]


Prefix = tuple[Candidate, ...]
"""The candidates selected so far, one per decision; the empty tuple is the prompt alone."""


def text_of(prefix: Prefix) -> str:
    """Text of a prefix, without a stop string that ends it."""
    text = "".join(candidate.text for candidate in prefix)
    return text[: len(text) - prefix[-1].withheld] if prefix else text


def final(candidate: Candidate) -> Candidate:
    """The candidate as the last of its response."""
    return replace(candidate, finish_reason=candidate.finish_reason or "deadline")


def key(prefix: Prefix) -> Hashable:
    """Equal for prefixes of the same tokens and finish reason."""
    return tuple(block.token_ids for block in prefix), prefix[-1].finish_reason


class Proposal(Protocol):
    """Source of candidates: draws and scores continuations of one prompt."""

    @property
    def deadline_passed(self) -> bool:
        """Whether the deadline has passed; candidates sampled from then on have no tokens."""
        ...

    async def sample(
        self,
        prefixes: Sequence[Prefix],
        count: int,
        max_tokens: int | None,
        budget: float | None = None,
    ) -> Sequence[Candidate]:
        """``count`` i.i.d. continuations of each prefix, grouped by prefix in order.

        Args:
            prefixes: prefixes that have not ended.
            max_tokens: block length in tokens; None runs each to the end of the response. Blocks
                may end earlier, at the policy's ``until``.
            budget: nats that the steering of each continuation may cost; None for no limit.
        """
        ...

    async def roll_out(self, prefixes: Sequence[Prefix], max_tokens: int) -> Sequence[Candidate]:
        """The most likely continuation of each prefix, token by token.

        Args:
            prefixes: prefixes that have not ended.
            max_tokens: length of a continuation at most, in tokens.
        """
        ...

    async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        """The request's rewards of each prefix, ended or not, the prompt alone included."""
        ...

    async def compare(
        self, pairs: Sequence[tuple[Candidate, Candidate]]
    ) -> Sequence[Comparison | None]:
        """The policy's judge on pairs of whole responses; None for pairs past the deadline.

        Defined for policies whose ``pairwise_judge`` is not None.

        Raises:
            JudgeFailure: the judge failed, and its settings allow a decision without it.
        """
        ...

    async def score_final(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        """The policy's final rewards of prefixes that have ended.

        Defined for policies whose ``final_weights`` is not None.
        """
        ...

    def outlook(self, tokens: int) -> Outlook:
        """Rest of a response after an unfinished prefix of ``tokens`` tokens, in score units.

        Defined for policies whose ``outlook_field`` is not None.
        """
        ...

    @property
    def score_variance(self) -> float | None:
        """Variance of a score with mean 0, by the operator's statistics of the rewards, or None."""
        ...

    def places(self, most: int) -> int:
        """How many prefixes to grow at the same time now, from 1 to ``most``.

        Fewer than ``most`` if the rest would wait for candidates of other requests.
        """
        ...

    async def grow(self, prefixes: Sequence[Prefix], max_tokens: int) -> Sequence[Candidate]:
        """One continuation of each prefix, for prefixes that go on growing.

        A response may be drawn past its continuation. The next call returns the tokens that follow,
        and ends the responses that it does not continue; ``abandon`` ends all of them.

        Args:
            prefixes: prefixes that have not ended; those of earlier calls may be among them.
            max_tokens: block length in tokens; the same in all calls.
        """
        ...

    async def draw(self, index: int, budget: float | None = None) -> Candidate:
        """One whole response: the candidate of this index in the first ``sample`` of the prompt.

        Args:
            index: index among the candidates of the response.
            budget: nats that the steering of the response may cost; None for no limit.
        """
        ...

    async def abandon(self) -> None:
        """Ends what ``grow`` and ``draw`` have begun, and returns once all of it has ended.

        Candidates that run are returned with the tokens drawn so far. Candidates that have not
        begun are cancelled.
        """
        ...


async def comparable_scores(proposal: Proposal, prefixes: Sequence[Prefix]) -> list[Score]:
    """Scores of prefixes, in their order, by one call.

    A reward that fails then fails for all of them. Equal prefixes share one score:
    computed again, it could differ in a last digit.
    """
    unique = {key(prefix): prefix for prefix in prefixes}
    scores = await proposal.score(list(unique.values()))
    score_by_key = dict(zip(unique, scores, strict=True))
    return [score_by_key[key(prefix)] for prefix in prefixes]
