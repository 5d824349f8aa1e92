"""The search: sample K blocks of M tokens, score each prefix, select, repeat.

Blockwise controlled decoding (arXiv 2310.17022, section 4). With M = ∞ the first decision is the
last one, and it is best-of-n. A rule that takes no prefix is given more of them; one that keeps
several makes a beam search of it (arXiv 2405.19262), or speculative rejection (arXiv 2410.20290).
"""

import math
from collections.abc import AsyncGenerator, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, repeat

from cdserve import kl
from cdserve.decoders.candidate import Candidate, Decision, Prefix, Proposal, Score
from cdserve.decoders.selection import Argmax, Select


async def search(
    proposal: Proposal,
    *,
    k: int | Sequence[int],
    m: int | None,
    select: Select,
    budget: float | None = None,
) -> AsyncGenerator[Decision, None]:
    """Decodes one response, until every prefix kept has ended; the best of them is it.

    A decision is made known once it is settled: once all prefixes kept go on from it. Once the
    deadline has passed, the best of what has been drawn ends the response; candidates that it cut
    are taken only where it cut them all.

    Args:
        proposal: draws candidates, and scores prefixes.
        k: candidates a draw for each prefix kept; a sequence is one number a draw, the last
            repeated.
        m: block length in tokens; None is ∞.
        select: the selection rule; with a budget, one that keeps one prefix.
        budget: nats that the sum of the decisions' bounds and of the steering never passes. Each
            draw has as many candidates as what is left allows, and their steering has the rest.
    """
    counts = _counts(k)
    kept: Sequence[Prefix] = [()]
    rounds: list[_Round] = []
    settled = 0
    while True:
        going = [prefix for prefix in kept if not _ended(prefix)]
        now = _Round(before=[prefix for prefix in kept if _ended(prefix)])
        chosen: Sequence[int] | None = None
        while chosen is None:
            count = 1 if proposal.deadline_passed else now.asks(next(counts), budget)
            drawn = await proposal.sample(going, count, m, now.left)
            over = proposal.deadline_passed
            drawn = [_last(one) for one in drawn] if over else drawn
            await now.add([(*going[i // count], one) for i, one in enumerate(drawn)], proposal)
            now.rank(select)
            chosen = select.keep(now.ranks)
            if chosen is None and over:
                chosen = [Argmax().choose(now.ranks)]
        rounds.append(now)
        kept = [now.prefixes[i] for i in chosen]
        done = all(map(_ended, kept))
        if done:
            kept = kept[:1]
        while settled < len(kept[0]) and len({id(prefix[settled]) for prefix in kept}) == 1:
            yield (decision := _decision(rounds[settled:], kept[0], settled, select))
            settled += 1
            if budget is not None:
                budget -= decision.kl_bound + (decision.candidate.kl or 0.0)
        if done:
            return


@dataclass(slots=True)
class _Round:
    """Prefixes that are compared with each other."""

    before: list[Prefix]
    """Those kept that had ended before; they come first."""
    prefixes: list[Prefix] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    known: dict[Hashable, Score] = field(default_factory=dict)
    """The scores by prefix."""
    ranks: Sequence[float] = ()
    limited: bool = False
    left: float | None = None
    """Of the budget, for the steering of each candidate."""

    def asks(self, count: int, budget: float | None) -> int:
        """How many candidates are drawn where ``count`` were asked for."""
        if budget is None:
            return count
        allowed = kl.largest_n(budget, count)
        self.limited = allowed < count
        self.left = max(0.0, budget - kl.best_of_n_bound(allowed))
        return allowed

    async def add(self, drawn: Sequence[Prefix], proposal: Proposal) -> None:
        """Scores what was drawn, and with the first draw what had ended before.

        Equal prefixes have one score, the first's: computed again it could differ in a last digit.
        """
        new = drawn if self.prefixes else [*self.before, *drawn]
        self.prefixes += new
        keys = [_key(one) for one in new]
        fresh: dict[Hashable, Prefix] = {}
        for key, one in zip(keys, new, strict=True):
            if key not in self.known:
                fresh.setdefault(key, one)
        if fresh:
            scores = await proposal.score(list(fresh.values()))
            self.known |= zip(fresh, scores, strict=True)
        self.scores += [self.known[key] for key in keys]

    def rank(self, select: Select) -> None:
        """Compares all prefixes; those that the deadline cut come last."""
        cut = [prefix[-1].cut for prefix in self.prefixes]
        self.ranks = select.rank(self.scores)
        if any(cut) and not all(cut):
            ranks = zip(cut, self.ranks, strict=True)
            self.ranks = [-math.inf if late else rank for late, rank in ranks]

    @property
    def drawn(self) -> list[tuple[Prefix, Score, float]]:
        """Those drawn now, with their scores and ranks."""
        found = zip(self.prefixes, self.scores, self.ranks, strict=True)
        return list(found)[len(self.before) :]


def _decision(rounds: Sequence[_Round], prefix: Prefix, index: int, select: Select) -> Decision:
    """The decision for ``prefix[index]``, which the first of the rounds made.

    The response's last decision lists what was drawn after it too, and not taken.
    """
    candidate = prefix[index]
    listed = rounds if candidate.finish_reason is not None else rounds[:1]
    candidates = [(other[-1], score) for one in listed for other, score, _ in one.drawn]
    siblings = [
        rank
        for other, _, rank in rounds[0].drawn
        if index == 0 or other[index - 1] is prefix[index - 1]
    ]
    ranks = rounds[0].ranks
    return Decision(
        candidates=[other for other, _ in candidates],
        scores=[score for _, score in candidates],
        chosen=next(i for i, (other, _) in enumerate(candidates) if other is candidate),
        tie=ranks.count(max(ranks)) > 1,
        kl_bound=select.kl_bound(len(siblings)),
        kl_estimate=select.kl_estimate(siblings, candidate.cumulative_logprob),
        kl_estimator=select.kl_estimator(candidate.cumulative_logprob),
        limited=rounds[0].limited,
        accepted=select.accepted(),
    )


def _last(candidate: Candidate) -> Candidate:
    """It as the response's last one."""
    return replace(candidate, finish_reason=candidate.finish_reason or "deadline")


def _key(prefix: Prefix) -> Hashable:
    """Equal for prefixes of the same tokens that have ended alike."""
    return tuple(one.token_ids for one in prefix), prefix[-1].finish_reason


def _ended(prefix: Prefix) -> bool:
    return bool(prefix) and prefix[-1].finish_reason is not None


def _counts(k: int | Sequence[int]) -> Iterator[int]:
    schedule = [k] if isinstance(k, int) else k
    return chain(schedule, repeat(schedule[-1]))
