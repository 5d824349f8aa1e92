"""Best-of-n: n whole responses, the best is returned (arXiv 2401.01879)."""

from collections.abc import AsyncGenerator
from typing import Literal

from pydantic import Field

from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.registry import decoder
from cdserve.decoders.search import search
from cdserve.decoders.selection import rule
from cdserve.policy import Limits, SelectingPolicy, at_most


class BestOfNPolicy(SelectingPolicy):
    """Samples ``n`` whole responses and returns one by its final reward."""

    method: Literal["best_of_n"]
    n: int = Field(ge=1, description="Responses drawn for each one returned.")

    @property
    def width(self) -> int:
        return self.n

    def check_limits(self, limits: Limits) -> None:
        at_most("alignment.n", self.n, limits.max_n)


@decoder("best_of_n")
class BestOfN:
    """The search with M = ∞."""

    policy = BestOfNPolicy

    @classmethod
    def run(
        cls, policy: BestOfNPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        select = rule(policy, seed)
        return search(proposal, k=policy.n, m=None, select=select, budget=policy.kl_budget)
