"""Selection between whole responses by a judge that compares two at a time: tournaments.

Knockout as in PairJudge (arXiv 2501.13007), all pairs as in PairRM (arXiv 2306.02561). Each pair is
compared in both orders, since judges favour a position (arXiv 2306.05685). Which response wins
depends on all the draws, so the KL is known by its bound only.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import combinations

from cdserve.decoders.candidate import Candidate, Comparison, Comparisons, Decision, Proposal
from cdserve.errors import JudgeFailure
from cdserve.policy import Pairwise


def pairs_of(tournament: str, n: int) -> int:
    """Most pairs that a tournament between ``n`` responses compares."""
    return n - 1 if tournament == "knockout" else math.comb(n, 2)


async def by_tournament(decision: Decision, proposal: Proposal, pairwise: Pairwise) -> Decision:
    """The decision between whole responses, with the winner of a tournament selected.

    Candidates that the deadline cut short take part only if it cut all. Of equally good ones the
    highest score wins, then the first drawn. If the judge fails and its settings allow a decision
    without it, the decision's own selection or the first candidate stands.

    Args:
        decision: one decision between whole responses, by score.
        proposal: asks the judge.
        pairwise: parameters of the policy.
    """
    candidates = decision.candidates
    players = [i for i, one in enumerate(candidates) if not one.cut] or [*range(len(candidates))]
    ranks = [score.total for score in decision.scores]
    matches = Matches(proposal, candidates, whole_wins=pairwise.tournament != "borda")
    play = _knockout if pairwise.tournament == "knockout" else _all_pairs
    try:
        chosen, tie = await play(matches, players, ranks)
        scores = decision.scores
    except JudgeFailure as failure:
        chosen = players[0] if failure.on_failure == "base" else decision.chosen
        tie = decision.tie
        scores = [
            replace(score, failed=(*score.failed, failure.judge)) for score in decision.scores
        ]
    return replace(
        decision,
        scores=scores,
        chosen=chosen,
        tie=tie,
        comparisons=Comparisons(
            judge=pairwise.judge,
            made=matches.made,
            disagreements=matches.disagreements,
            missed=matches.missed,
            wins=matches.wins,
        ),
    )


class Matches:
    """Results of comparisons; a pair of texts is compared once, and equal texts never.

    Args:
        proposal: asks the judge.
        candidates: candidates that are compared.
        whole_wins: whether a pair that is not a tie is one win, instead of the mean of the two
            verdicts, which may be 3/4 and 1/4.
    """

    def __init__(
        self, proposal: Proposal, candidates: Sequence[Candidate], *, whole_wins: bool
    ) -> None:
        self._proposal = proposal
        self._whole_wins = whole_wins
        self._candidates = candidates
        self._texts: list[Hashable] = [one.text or one.token_ids for one in candidates]
        self._results: dict[tuple[Hashable, Hashable], Comparison | None] = {}
        self.wins = [0.0] * len(candidates)
        """Wins so far of each candidate; half a win for each side of a tie."""

    @property
    def made(self) -> int:
        """Pairs compared."""
        return sum(result is not None for result in self._results.values())

    @property
    def missed(self) -> int:
        """Pairs that the deadline left uncompared."""
        return len(self._results) - self.made

    @property
    def disagreements(self) -> int:
        """Pairs on which the verdict depends on the order."""
        return sum(not (result is None or result.agreed) for result in self._results.values())

    async def play(self, pairs: Sequence[tuple[int, int]]) -> list[float]:
        """Wins of the first of each pair; those of the second are 1 less these.

        Args:
            pairs: indices of candidates.

        Raises:
            JudgeFailure: the judge failed, and its settings allow a decision without it.
        """
        asked: dict[tuple[Hashable, Hashable], tuple[Candidate, Candidate]] = {}
        for i, j in pairs:
            a, b = self._texts[i], self._texts[j]
            if a != b and not {(a, b), (b, a)} & (self._results.keys() | asked.keys()):
                asked[a, b] = self._candidates[i], self._candidates[j]
        if asked:
            compared = await self._proposal.compare(list(asked.values()))
            self._results |= zip(asked, compared, strict=True)
        shares = [self._share(self._texts[i], self._texts[j]) for i, j in pairs]
        for (i, j), share in zip(pairs, shares, strict=True):
            self.wins[i] += share
            self.wins[j] += 1.0 - share
        return shares

    def _share(self, a: Hashable, b: Hashable) -> float:
        if (b, a) in self._results:
            return 1.0 - self._share(b, a)
        result = self._results.get((a, b))
        if result is None or result.share == 0.5:
            return 0.5
        return float(result.share > 0.5) if self._whole_wins else result.share


async def _knockout(
    matches: Matches, players: Sequence[int], ranks: Sequence[float]
) -> tuple[int, bool]:
    """Winner of rounds of pairs, and whether the last pair was a tie."""
    left, tie = [*players], False
    while len(left) > 1:
        pairs = list(zip(left[::2], left[1::2], strict=False))
        shares = await matches.play(pairs)
        waiting = left[2 * len(pairs) :]  # the odd one out meets the first winner in the next round
        winners = [
            _first_of(pair, (share, 1.0 - share), ranks)
            for pair, share in zip(pairs, shares, strict=True)
        ]
        left, tie = [*waiting, *winners], shares[-1] == 0.5
    return left[0], tie


async def _all_pairs(
    matches: Matches, players: Sequence[int], ranks: Sequence[float]
) -> tuple[int, bool]:
    """Player with the most wins over all others, and whether another one has as many."""
    await matches.play(list(combinations(players, 2)))
    wins = [matches.wins[i] for i in players]
    return _first_of(players, wins, ranks), wins.count(max(wins)) > 1


def _first_of(players: Sequence[int], wins: Sequence[float], ranks: Sequence[float]) -> int:
    """Player with the most wins; of equal ones the highest rank, then the first drawn."""
    return max(zip(wins, players, strict=True), key=lambda one: (one[0], ranks[one[1]], -one[1]))[1]
