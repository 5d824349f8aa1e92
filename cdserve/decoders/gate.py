"""Gate: draws more than the first candidates of a block only if none of them is good enough."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import chain, repeat
from statistics import fmean

from cdserve import kl
from cdserve.decoders.candidate import Decision, DrawCounts, Prefix, Proposal, Score
from cdserve.decoders.search import Gain, search
from cdserve.decoders.selection import OrderDependentRule
from cdserve.policy import Gate


class GatedArgmax(OrderDependentRule):
    """Selects the highest score once a drawn candidate is good enough, or all K are drawn.

    Candidates that are not drawn are merely not seen, so the selected block is one of K i.i.d.
    draws, and best-of-n's bound holds for K.

    Args:
        gate: the threshold and the numbers of candidates per draw.
        schedule: K of each decision, the last repeated.
    """

    def __init__(self, gate: Gate, schedule: Sequence[int]) -> None:
        self._gate = gate
        self._schedule = schedule
        self._open = 0
        """K of the decision under way; 0 between decisions."""
        self._good = False
        """Whether one of the candidates drawn is good enough."""
        self.allowed = 1
        """K of the last decision."""

    @property
    def late(self) -> bool:
        """Whether the deadline has ended the last decision before the gate did."""
        return self._open > 0

    def counts(self) -> Iterator[int]:
        """Candidates per draw of the search: the scouts, and others until one is good enough."""
        for k in chain(self._schedule, repeat(self._schedule[-1])):
            self._open, drawn, count = k, 0, self._gate.scouts
            while self._open and drawn < k:
                yield min(count, k - drawn)
                drawn, count = drawn + count, self._gate.at_once or k

    def rank(self, scores: Sequence[Score]) -> Sequence[float]:
        # The gate reads the scores themselves; a continuation gain is added to the ranks only.
        threshold = self._gate.threshold
        self._good = any(score.total >= threshold and not score.failed for score in scores)
        return super().rank(scores)

    def keep(self, scores: Sequence[float], prefixes: Sequence[Prefix]) -> Sequence[int] | None:
        self.allowed = max(self._open, len(scores))
        if len(scores) < self.allowed and not self._good:
            return None
        self._open = 0
        return super().keep(scores, prefixes)

    def kl_bound(self, count: int) -> float:
        return kl.best_of_n_bound(self.allowed)


async def gated_search(
    proposal: Proposal,
    gate: Gate,
    schedule: Sequence[int],
    m: int,
    gain: Gain,
    lookahead: int | None = None,
) -> AsyncGenerator[Decision, None]:
    """The search with a gate; its decisions say whether all K candidates were drawn.

    Args:
        proposal: draws candidates, and scores prefixes.
        gate: the gate.
        schedule: K of each decision, the last repeated.
        m: block length in tokens.
        gain: as for ``search``.
        lookahead: as for ``search``.
    """
    select = GatedArgmax(gate, schedule)
    async with aclosing(
        search(proposal, k=select.counts(), m=m, select=select, gain=gain, lookahead=lookahead)
    ) as decisions:
        async for decision in decisions:
            drawn = len(decision.candidates)
            allowed = drawn if select.late else select.allowed
            length = fmean(len(candidate.token_ids) for candidate in decision.candidates)
            saved = round((allowed - drawn) * length)
            draws = DrawCounts(made=drawn, allowed=allowed, saved_tokens=saved)
            yield replace(decision, draws=draws, searched=drawn == allowed)
