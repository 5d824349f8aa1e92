"""Best-of-n: the best of n whole responses (arXiv 2401.01879)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.registry import decoder
from cdserve.decoders.search import search
from cdserve.decoders.selection import rule
from cdserve.decoders.stopping import best_of, stop_rule
from cdserve.decoders.width import WidthField
from cdserve.errors import PolicyError
from cdserve.policy import FIELD, Guard, Limits, SelectingPolicy, Stop


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
        "and scored, with `stop` once the rule has considered it. All n if absent.",
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
    def guard(self) -> Guard | None:
        return self.threshold

    def check_limits(self, limits: Limits) -> None:
        super().check_limits(limits)
        if self.stop is not None and self.selection != "argmax":
            raise PolicyError(
                f"{FIELD}.stop",
                "cannot be combined with another selection than 'argmax', the selection that it "
                "saves draws for",
                reason="combination",
            )


@decoder("best_of_n")
class BestOfN:
    """The search with M = ∞, so that the first decision is the last."""

    policy = BestOfNPolicy

    @classmethod
    async def run(
        cls, policy: BestOfNPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        async with aclosing(_decisions(policy, proposal, seed)) as decisions:
            async for decision in decisions:
                if policy.threshold is not None:
                    accepted = decision.score.total >= policy.threshold.score
                    decision = replace(decision, accepted=accepted)
                yield decision


def _decisions(
    policy: BestOfNPolicy, proposal: Proposal, seed: int | None
) -> AsyncGenerator[Decision, None]:
    select = rule(policy, seed)
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
