"""Best-of-n: the best of n whole responses (arXiv 2401.01879)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from cdserve import kl
from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.pairwise import by_tournament, pairs_of
from cdserve.decoders.race import race
from cdserve.decoders.registry import decoder
from cdserve.decoders.search import search
from cdserve.decoders.selection import OrderDependentRule, SelectionRule, rule
from cdserve.decoders.stopping import StopRule, best_of, stop_rule
from cdserve.decoders.voting import (
    Certain,
    CertainPosterior,
    Election,
    MinimumRiskRule,
    VoteRule,
)
from cdserve.decoders.width import WidthField
from cdserve.errors import PolicyError, safe_repr
from cdserve.policy import (
    FIELD,
    Guard,
    Limits,
    MinimumRiskSelection,
    PairwiseSelection,
    RaceParameters,
    SelectingPolicy,
    Stop,
    StopWhenCertain,
    VoteSelection,
    WholeSelection,
)


class BestOfNPolicy(WidthField, SelectingPolicy):
    """Samples up to ``n`` whole responses and returns one by its final reward."""

    method: Literal["best_of_n"]
    n: int = Field(ge=1, description="Responses drawn for each one returned; the most with `stop`.")
    selection: WholeSelection = Field(  # type: ignore[assignment]  # wider: whole responses only
        default="argmax",
        description="Rule that selects a response. A vote by count, `mbr` and `pairwise` need no "
        "rewards.",
    )
    stop: Stop | None = Field(
        default=None,
        description="When fewer than n responses are enough; all n are drawn if absent. Requires "
        "the selection argmax; `certain` requires a vote with the weights count or posterior.",
    )
    at_once: int | None = Field(
        default=None,
        ge=1,
        description="Responses drawn at the same time; the next one begins once one has been drawn "
        "and scored, with `stop` once the rule has considered it, with `race` in any round with a "
        "free place. All n if absent.",
    )
    race: RaceParameters | None = Field(
        default=None,
        description="When responses are given up before their end; never if absent. Requires the "
        "selection argmax and value heads with figures on held-out responses. With `stop`, "
        "unfinished responses may also wait.",
    )
    threshold: Guard | None = Field(
        default=None,
        description="Lowest score of an accepted response; all are accepted if absent. It does not "
        "change how many responses are drawn.",
    )

    whole_responses: ClassVar[bool] = True
    width_field: ClassVar[str] = "n"
    width_limit: ClassVar[str] = "max_n"

    @property
    def concurrent(self) -> int:
        return min(self.n, self.at_once or self.n)

    @property
    def compares_prefixes(self) -> bool:
        return self.race is not None

    @property
    def keeps_several(self) -> bool:
        return self.race is not None

    @property
    def outlook_field(self) -> str | None:
        return "race" if self.race is not None else None

    @property
    def guard(self) -> Guard | None:
        return self.threshold

    @property
    def requires_rewards(self) -> bool:
        scoreless = isinstance(self.selection, MinimumRiskSelection | PairwiseSelection)
        scoreless = scoreless or _counts(self.selection)
        return not scoreless or self.threshold is not None

    @property
    def answer_extractor(self) -> str | None:
        return self.selection.vote.extract if isinstance(self.selection, VoteSelection) else None

    @property
    def pairwise_judge(self) -> str | None:
        selection = self.selection
        return selection.pairwise.judge if isinstance(selection, PairwiseSelection) else None

    def check_limits(self, limits: Limits) -> None:
        super().check_limits(limits)
        if isinstance(self.selection, PairwiseSelection):
            self._check_pairs(self.selection.pairwise.tournament, limits.max_comparisons)
        if self.race is not None:
            self._check_race(self.race)
        if isinstance(self.stop, StopWhenCertain):
            if not _counts(self.selection) and not _is_posterior(self.selection):
                raise PolicyError(
                    f"{FIELD}.stop.certain",
                    "requires the selection {'vote': {...}} with the weights 'count' or "
                    "'posterior'",
                    reason="combination",
                )
        elif self.stop is not None and self.selection != "argmax":
            raise PolicyError(
                f"{FIELD}.stop",
                "requires the selection 'argmax', whose draws it saves",
                reason="combination",
            )

    def _check_pairs(self, tournament: str, limit: int) -> None:
        """Checks the number of comparisons."""
        pairs = pairs_of(tournament, self.n)
        if pairs > limit:
            raise PolicyError(
                f"{FIELD}.selection.pairwise.tournament",
                f"is {tournament!r}, which compares {pairs} pairs of n = {self.n} responses; this "
                f"server accepts up to {limit} comparisons",
                reason="limit",
            )

    def _check_race(self, race: RaceParameters) -> None:
        """Checks the fields that a race cannot be combined with."""
        problems = {
            "selection": (self.selection != "argmax", "unless it is 'argmax'"),
            "threshold.on_reject": (
                self.threshold is not None and self.threshold.on_reject == "refuse",
                "unless it is 'best' or 'error': a stream has begun before the final score",
            ),
            "kl_budget": (
                self.kl_budget is not None
                and (self.proposal is not None or kl.best_of_n_bound(self.n) > self.kl_budget),
                f"unless it allows the KL bound of n = {self.n}, "
                f"{kl.best_of_n_bound(self.n):.3g} nats, and there is no proposal",
            ),
        }
        for field, (excluded, why) in problems.items():
            if excluded:
                raise PolicyError(
                    f"{FIELD}.race",
                    f"cannot be combined with {field!r} {why}",
                    reason="combination",
                )
        if self.n > 1 and race.delta >= 1 / self.n:
            raise PolicyError(
                f"{FIELD}.race.delta",
                f"is {safe_repr(race.delta)}; it must be below 1 / n = {1 / self.n:g}, the "
                "probability of each of n equal responses",
                reason="combination",
            )


def _counts(selection: WholeSelection) -> bool:
    """Whether a selection is a vote in which all votes have the same weight."""
    return isinstance(selection, VoteSelection) and selection.vote.weights == "count"


def _is_posterior(selection: WholeSelection) -> bool:
    return isinstance(selection, VoteSelection) and selection.vote.weights == "posterior"


@decoder("best_of_n")
class BestOfN:
    """The search with M = ∞; with ``stop`` or ``at_once`` ``best_of``, with ``race`` a race."""

    policy = BestOfNPolicy

    @classmethod
    async def run(
        cls, policy: BestOfNPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        select = _rule(policy, seed)
        async with aclosing(_decisions(policy, proposal, select)) as decisions:
            async for decision in decisions:
                if isinstance(policy.selection, PairwiseSelection):
                    decision = await by_tournament(decision, proposal, policy.selection.pairwise)
                elif isinstance(select, Election):
                    decision = replace(decision, tie=select.tie, votes=select.votes)
                if policy.threshold is not None and decision.candidate.finish_reason is not None:
                    score = decision.score
                    failed = {*score.failed} - {policy.pairwise_judge}  # which adds no score
                    accepted = not failed and score.total >= policy.threshold.score
                    decision = replace(decision, accepted=accepted)
                yield decision


def _rule(policy: BestOfNPolicy, seed: int | None) -> SelectionRule:
    selection = policy.selection
    if isinstance(selection, VoteSelection):
        return VoteRule(selection.vote.weights)
    if isinstance(selection, MinimumRiskSelection):
        return MinimumRiskRule(selection.mbr.beta)
    if isinstance(selection, PairwiseSelection):
        return OrderDependentRule()  # the tournament follows
    return rule(policy, seed)


def _stop_rule(policy: BestOfNPolicy, proposal: Proposal) -> StopRule | None:
    if policy.stop is None:
        return None
    if isinstance(policy.stop, StopWhenCertain):
        if _is_posterior(policy.selection):
            return CertainPosterior(policy.stop.certain)
        return Certain(policy.stop.certain, policy.n)
    return stop_rule(policy.stop, proposal.score_variance)


def _decisions(
    policy: BestOfNPolicy, proposal: Proposal, select: SelectionRule
) -> AsyncGenerator[Decision, None]:
    if policy.race is not None:
        return race(
            proposal,
            n=policy.n,
            at_once=policy.concurrent,
            every=policy.race.every,
            delta=policy.race.delta,
            stop=policy.stop,
        )
    if policy.stop is None and policy.at_once is None:
        return search(proposal, k=policy.n, m=None, select=select, budget=policy.kl_budget)
    return best_of(
        proposal,
        n=policy.n,
        at_once=policy.at_once or policy.n,
        select=select,
        stop=_stop_rule(policy, proposal),
        budget=policy.kl_budget,
    )
