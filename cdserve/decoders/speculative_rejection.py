"""Speculative rejection: best-of-n that drops low-valued responses early (arXiv 2410.20290)."""

import math
from collections.abc import AsyncGenerator
from typing import ClassVar, Literal

from pydantic import Field

from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.final_rewards import FinalRewardsField
from cdserve.decoders.registry import decoder
from cdserve.decoders.search import search
from cdserve.decoders.selection import KeepSeveral
from cdserve.decoders.until import UntilField
from cdserve.decoders.width import WidthField


class SpeculativeRejectionPolicy(WidthField, FinalRewardsField, UntilField):
    """Starts ``n`` responses; every ``m`` tokens, drops the share ``alpha`` with the lowest values.

    Of the responses that reach their end, the one with the highest reward is returned.
    """

    method: Literal["speculative_rejection"]
    n: int = Field(ge=1, description="Responses started per response returned.")
    m: int = Field(ge=1, description="Tokens between comparisons; with `until` the most.")
    alpha: float = Field(
        default=0.5, ge=0, lt=1, description="Share of responses dropped at each comparison."
    )

    scores_prefixes: ClassVar[bool] = True
    width_field: ClassVar[str] = "n"
    width_limit: ClassVar[str] = "max_n"

    @property
    def keeps_several(self) -> bool:
        return True


class DropFraction(KeepSeveral):
    """Drops a share of the prefixes in each round, and keeps at least one.

    Each kept prefix has one continuation, so the response is one of the i.i.d. responses started:
    best-of-n's bound holds for their number, and later rounds add nothing to it.

    Args:
        alpha: share of prefixes dropped, those with the lowest scores.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    def width(self, count: int) -> int:
        return max(1, count - math.floor(self._alpha * count + 1e-9))


@decoder("speculative_rejection")
class SpeculativeRejection:
    """The search with a rule that keeps several prefixes, each with one continuation."""

    policy = SpeculativeRejectionPolicy

    @classmethod
    def run(
        cls, policy: SpeculativeRejectionPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        return search(
            proposal,
            k=[policy.n, 1],
            m=policy.m,
            select=DropFraction(policy.alpha),
            final_score=proposal.score_final if policy.final_rewards else None,
        )
