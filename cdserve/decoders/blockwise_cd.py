"""Blockwise controlled decoding: best-of-K over blocks of M tokens (arXiv 2310.17022)."""

from collections.abc import AsyncGenerator
from typing import ClassVar, Literal

from pydantic import Field

from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.registry import decoder
from cdserve.decoders.search import search
from cdserve.decoders.selection import rule
from cdserve.policy import FIELD, Limits, Schedule, SelectingPolicy, at_most


class BlockwiseCDPolicy(SelectingPolicy):
    """Samples ``k`` blocks of ``m`` tokens, keeps one by its prefix value, and goes on from it."""

    method: Literal["blockwise_cd"]
    k: Schedule = Field(
        description="Blocks drawn for each one kept; a list has one number a block, the last "
        "repeated."
    )
    m: int = Field(ge=1, description="Block length in tokens.")

    scores_prefixes: ClassVar[bool] = True

    @property
    def width(self) -> int:
        return self.k if isinstance(self.k, int) else max(self.k)

    def check_limits(self, limits: Limits) -> None:
        if isinstance(self.k, int):
            at_most(f"{FIELD}.k", self.k, limits.max_k)
            return
        for i, k in enumerate(self.k):
            at_most(f"{FIELD}.k.{i}", k, limits.max_k)


@decoder("blockwise_cd")
class BlockwiseCD:
    """The search with blocks; each is streamed as it is accepted."""

    policy = BlockwiseCDPolicy

    @classmethod
    def run(
        cls, policy: BlockwiseCDPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        return search(proposal, k=policy.k, m=policy.m, select=rule(policy, seed))
