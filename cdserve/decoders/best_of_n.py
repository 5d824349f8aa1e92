"""Best-of-n: the best of n whole responses (arXiv 2401.01879)."""

from collections.abc import AsyncGenerator
from typing import ClassVar, Literal

from pydantic import Field

from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.registry import decoder
from cdserve.decoders.search import search
from cdserve.decoders.selection import rule
from cdserve.decoders.width import WidthField
from cdserve.policy import SelectingPolicy


class BestOfNPolicy(WidthField, SelectingPolicy):
    """Samples ``n`` whole responses and returns one by its final reward."""

    method: Literal["best_of_n"]
    n: int = Field(ge=1, description="Responses drawn for each one returned.")

    whole_responses: ClassVar[bool] = True
    width_field: ClassVar[str] = "n"
    width_limit: ClassVar[str] = "max_n"


@decoder("best_of_n")
class BestOfN:
    """The search with M = ∞, so that the first decision is the last."""

    policy = BestOfNPolicy

    @classmethod
    def run(
        cls, policy: BestOfNPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        select = rule(policy, seed)
        return search(proposal, k=policy.n, m=None, select=select, budget=policy.kl_budget)
