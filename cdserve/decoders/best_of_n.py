"""Best-of-n: the best of n whole responses (arXiv 2401.01879)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from cdserve import kl
from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.race import race
from cdserve.decoders.registry import decoder
from cdserve.decoders.search import search
from cdserve.decoders.selection import rule
from cdserve.decoders.stopping import best_of, stop_rule
from cdserve.decoders.width import WidthField
from cdserve.errors import PolicyError, safe_repr
from cdserve.policy import FIELD, Guard, Limits, RaceParameters, SelectingPolicy, Stop


class BestOfNPolicy(WidthField, SelectingPolicy):
    """Samples up to ``n`` whole responses and returns one by its final reward."""

    method: Literal["best_of_n"]
    n: int = Field(ge=1, description="Responses drawn for each one returned; the most with `stop`.")
    stop: Stop | None = Field(
        default=None,
        description="When fewer than n responses are enough; all n are drawn if absent. Requires "
        "the selection argmax.",
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

    def check_limits(self, limits: Limits) -> None:
        super().check_limits(limits)
        if self.race is not None:
            self._check_race(self.race)
        if self.stop is not None and self.selection != "argmax":
            raise PolicyError(
                f"{FIELD}.stop",
                "requires the selection 'argmax', whose draws it saves",
                reason="combination",
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


@decoder("best_of_n")
class BestOfN:
    """The search with M = ∞; with ``stop`` or ``at_once`` ``best_of``, with ``race`` a race."""

    policy = BestOfNPolicy

    @classmethod
    async def run(
        cls, policy: BestOfNPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        async with aclosing(_decisions(policy, proposal, seed)) as decisions:
            async for decision in decisions:
                if policy.threshold is not None and decision.candidate.finish_reason is not None:
                    score = decision.score
                    accepted = not score.failed and score.total >= policy.threshold.score
                    decision = replace(decision, accepted=accepted)
                yield decision


def _decisions(
    policy: BestOfNPolicy, proposal: Proposal, seed: int | None
) -> AsyncGenerator[Decision, None]:
    select = rule(policy, seed)
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
    variance = proposal.score_variance
    return best_of(
        proposal,
        n=policy.n,
        at_once=policy.at_once or policy.n,
        select=select,
        stop=None if policy.stop is None else stop_rule(policy.stop, variance),
        budget=policy.kl_budget,
    )
