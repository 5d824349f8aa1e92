"""The search: sample K blocks of M tokens, score each prefix, select, repeat.

Blockwise controlled decoding (arXiv 2310.17022, section 4). With M = ∞ the first decision is the
last, and the search is best-of-n. A rule that rejects all candidates gets more of them; a rule that
keeps several makes the search a beam search (arXiv 2405.19262) or speculative rejection (arXiv
2410.20290).
"""

import math
from collections.abc import AsyncGenerator, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat

from cdserve import kl
from cdserve.decoders.candidate import Decision, Prefix, Proposal, Score, final, key
from cdserve.decoders.final_rewards import Scorer, final_scores
from cdserve.decoders.lookahead import scores_ahead
from cdserve.decoders.selection import Argmax, SelectionRule

Gain = Callable[[int], float]
"""Gain of the decisions after a number of draws, in units of the score."""


async def search(
    proposal: Proposal,
    *,
    k: int | Sequence[int] | Iterator[int],
    m: int | None,
    select: SelectionRule,
    budget: float | None = None,
    gain: Gain | None = None,
    lookahead: int | None = None,
    final_score: Scorer | None = None,
) -> AsyncGenerator[Decision, None]:
    """Decodes one response until every kept prefix has ended; the best of them is the response.

    A decision is yielded once it is settled: once all kept prefixes go on from its block. Two beams
    with ``k=[4, 2]``, for example, where ``ab`` is block b after block a::

        round  drawn             kept      yielded
        0      a b c d           a, c      nothing: the beams differ
        1      aa ab ca cb       ca, cb    c
        2      caa cab cba cbb   cbb, caa  nothing

    If all prefixes kept in round 2 have ended, ``cb`` and ``cbb`` follow. Once the deadline has
    passed, the best of the candidates drawn so far ends the response; a candidate that the deadline
    cut short is selected only if it cut all of them.

    Args:
        proposal: draws candidates, and scores prefixes.
        k: candidates per draw for each kept prefix; a sequence has one number per draw, the last
            repeated, and an iterator never ends.
        m: block length in tokens; None for ∞.
        select: the selection rule; with a budget, one that keeps a single prefix.
        budget: upper limit, in nats, on the decisions' KL bounds plus the KL of steering. Each draw
            has as many candidates as the rest of the budget allows, and steering may cost what
            remains.
        gain: added to the ranks of unfinished prefixes where they are compared with ended ones;
            None for no gain.
        lookahead: length, at most, of the rollout that an unfinished prefix is scored with, in
            tokens; None to score prefixes themselves.
        final_score: scores prefixes where all that are compared have ended: candidates, or the kept
            prefixes at the end, of which it selects the highest. None to score all alike.
    """
    score = proposal.score if lookahead is None else partial(scores_ahead, proposal, lookahead)
    counts = _counts(k)
    kept: Sequence[Prefix] = [()]
    rounds: list[_Round] = []
    settled = 0
    while True:
        growing = [prefix for prefix in kept if not _ended(prefix)]
        current = _Round(len(rounds) + 1, [prefix for prefix in kept if _ended(prefix)])
        indices: Sequence[int] | None = None
        while indices is None:
            count = 1 if proposal.deadline_passed else current.affordable(next(counts), budget)
            blocks = await proposal.sample(growing, count, m, current.steering_nats)
            late = proposal.deadline_passed
            blocks = [final(block) for block in blocks] if late else blocks
            await current.add([(*growing[i // count], b) for i, b in enumerate(blocks)], score)
            if final_score is not None and current.has_ended:
                current.scores = await final_scores(final_score, current.prefixes, current.scores)
            current.rank(select, gain)
            indices = select.keep(current.ranks, current.prefixes)
            if indices is None and late:
                indices = [Argmax().choose(current.ranks)]
        rounds.append(current)
        kept = [current.prefixes[index] for index in indices]
        done = all(map(_ended, kept))
        last = None
        if done and final_score is not None:
            index, last = await current.last_choice(indices, final_score)
            kept = [current.prefixes[index]]
        elif done:
            kept = kept[:1]
        while settled < len(kept[0]) and len({id(prefix[settled]) for prefix in kept}) == 1:
            yield (decision := _decision(rounds[settled:], kept[0], settled, select, last))
            settled += 1
            if budget is not None:
                budget -= decision.kl_bound + (decision.candidate.kl or 0.0)
        if done:
            return


@dataclass(slots=True)
class _Round:
    """Prefixes that are compared with each other."""

    number: int
    """Number of the round, from 1: draws of an unfinished prefix."""
    ended: list[Prefix]
    """Kept prefixes that ended in an earlier round; they are compared too, and come first."""
    prefixes: list[Prefix] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    """Scores of ``prefixes``, in their order."""
    score_by_key: dict[Hashable, Score] = field(default_factory=dict)
    ranks: Sequence[float] = ()
    """Numbers that the rule compares ``prefixes`` by; the highest is the best."""
    limited: bool = False
    """Whether the budget allowed fewer candidates than were asked for."""
    steering_nats: float | None = None
    """KL that the steering of each candidate may cost, in nats; None for no limit."""

    def affordable(self, count: int, budget: float | None) -> int:
        """Candidates that a budget, in nats, allows out of ``count``; steering has the rest."""
        if budget is None:
            return count
        allowed = kl.largest_n(budget, count)
        self.limited = allowed < count
        self.steering_nats = max(0.0, budget - kl.best_of_n_bound(allowed))
        return allowed

    async def add(self, drawn: Sequence[Prefix], score: Scorer) -> None:
        """Adds and scores drawn prefixes, and before the first of them the ended ones.

        Equal prefixes share the first one's score: computed again, it could differ in a last digit.
        """
        new = drawn if self.prefixes else [*self.ended, *drawn]
        self.prefixes += new
        keys = [key(prefix) for prefix in new]
        unscored: dict[Hashable, Prefix] = {}
        for prefix_key, prefix in zip(keys, new, strict=True):
            if prefix_key not in self.score_by_key:
                unscored.setdefault(prefix_key, prefix)
        if unscored:
            scores = await score(list(unscored.values()))
            self.score_by_key |= zip(unscored, scores, strict=True)
        self.scores += [self.score_by_key[prefix_key] for prefix_key in keys]

    def rank(self, select: SelectionRule, gain: Gain | None) -> None:
        """Ranks all prefixes; those that the deadline cut short come last.

        The gain is added to the ranks of unfinished prefixes if others have ended.
        """
        cut = [prefix[-1].cut for prefix in self.prefixes]
        self.ranks = select.rank(self.scores)
        ended = [_ended(prefix) for prefix in self.prefixes]
        if gain is not None and any(ended) and not all(ended):
            added, ranks = gain(self.number), zip(ended, self.ranks, strict=True)
            self.ranks = [rank if end else rank + added for end, rank in ranks]
        if any(cut) and not all(cut):
            ranks = zip(cut, self.ranks, strict=True)
            self.ranks = [-math.inf if late else rank for late, rank in ranks]

    @property
    def has_ended(self) -> bool:
        """Whether all prefixes have ended."""
        return all(map(_ended, self.prefixes))

    async def last_choice(self, kept: Sequence[int], final_score: Scorer) -> tuple[int, Score]:
        """Index of the response among kept prefixes, the best first, and its final score."""
        if self.has_ended:
            return kept[0], self.scores[kept[0]]
        prefixes, scores = zip(*((self.prefixes[i], self.scores[i]) for i in kept), strict=True)
        final = await final_scores(final_score, prefixes, scores)
        best = Argmax().choose([score.total for score in final])
        return kept[best], final[best]

    @property
    def drawn(self) -> list[tuple[Prefix, Score, float]]:
        """Prefixes drawn in this round, with their scores and ranks."""
        compared = zip(self.prefixes, self.scores, self.ranks, strict=True)
        return list(compared)[len(self.ended) :]


def _decision(
    rounds: Sequence[_Round],
    prefix: Prefix,
    index: int,
    select: SelectionRule,
    last: Score | None,
) -> Decision:
    """The decision for ``prefix[index]``, which the first of the rounds drew.

    The response's last decision also lists the candidates of later rounds, none of them selected.

    Args:
        last: final score of the response, which its last decision reports; None for no other.
    """
    candidate = prefix[index]
    listed = rounds if candidate.finish_reason is not None else rounds[:1]
    candidates = [(drawn[-1], score) for each in listed for drawn, score, _ in each.drawn]
    siblings = [
        rank
        for drawn, _, rank in rounds[0].drawn
        if index == 0 or drawn[index - 1] is prefix[index - 1]
    ]
    ranks = rounds[0].ranks
    chosen = next(i for i, (drawn, _) in enumerate(candidates) if drawn is candidate)
    scores = [score for _, score in candidates]
    if last is not None and candidate.finish_reason is not None:
        scores[chosen] = last
    return Decision(
        candidates=[drawn for drawn, _ in candidates],
        scores=scores,
        chosen=chosen,
        tie=ranks.count(max(ranks)) > 1,
        kl_bound=select.kl_bound(len(siblings)),
        kl_estimate=select.kl_estimate(siblings, candidate.cumulative_logprob),
        kl_estimator=select.kl_estimator(candidate.cumulative_logprob),
        limited=rounds[0].limited,
        accepted=select.accepted(),
        exact=select.exact(),
    )


def _ended(prefix: Prefix) -> bool:
    return bool(prefix) and prefix[-1].finish_reason is not None


def _counts(k: int | Sequence[int] | Iterator[int]) -> Iterator[int]:
    if isinstance(k, Iterator):
        return k
    schedule = [k] if isinstance(k, int) else k
    return chain(schedule, repeat(schedule[-1]))
