"""Speculative rejection: best-of-n that gives up what has fallen behind (arXiv 2410.20290)."""

import math
from collections.abc import AsyncGenerator
from typing import ClassVar, Literal

from pydantic import Field

from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.registry import decoder
from cdserve.decoders.search import search
from cdserve.decoders.selection import KeepSeveral
from cdserve.policy import FIELD, Limits, SearchPolicy, at_most


class SpeculativeRejectionPolicy(SearchPolicy):
    """Begins ``n`` responses; every ``m`` tokens the share ``alpha`` with the lowest values is
    given up. Of those that reach their end, the one with the highest reward is returned.
    """

    method: Literal["speculative_rejection"]
    n: int = Field(ge=1, description="Responses begun for each one returned.")
    m: int = Field(ge=1, description="Tokens between one comparison and the next.")
    alpha: float = Field(
        default=0.5, ge=0, lt=1, description="Share given up each time; 0 is none."
    )

    scores_prefixes: ClassVar[bool] = True

    @property
    def width(self) -> int:
        return self.n

    def check_limits(self, limits: Limits) -> None:
        at_most(f"{FIELD}.n", self.n, limits.max_n)


class GiveUp(KeepSeveral):
    """Gives up a share of the prefixes each time, and keeps at least one.

    Each prefix kept has one continuation, so what is returned is one of the i.i.d. responses begun:
    best-of-n's bound holds for their number, and later rounds add nothing to it.

    Args:
        alpha: the share, that with the lowest scores.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    def width(self, count: int) -> int:
        return max(1, count - math.floor(self._alpha * count + 1e-9))


@decoder("speculative_rejection")
class SpeculativeRejection:
    """The search with a rule that keeps several prefixes, each continued once."""

    policy = SpeculativeRejectionPolicy

    @classmethod
    def run(
        cls, policy: SpeculativeRejectionPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        return search(proposal, k=[policy.n, 1], m=policy.m, select=GiveUp(policy.alpha))
