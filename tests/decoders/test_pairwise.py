"""Tournaments: the selection, its distribution and KL, and the pairs that are compared."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdserve import kl
from cdserve.decoders import BestOfN, BestOfNPolicy, Candidate, Comparison, Decision, Score
from cdserve.decoders.pairwise import by_tournament, pairs_of
from cdserve.errors import JudgeFailure, PolicyError
from cdserve.policy import Pairwise, parse

from .toy import (
    RESPONSES,
    A,
    B,
    E,
    Limits,
    Tokens,
    Toy,
    collect,
    finish,
    probability,
    replay,
    reward,
)

reproducible = settings(derandomize=True, deadline=None, max_examples=60)
TOURNAMENTS = ("knockout", "borda", "copeland")
Judge = Callable[[int, int], float]
"""Verdict on two texts in this order: 1 for the first, 0 for the second, 1/2 for a tie."""


class Judged(Toy):
    """A proposal whose judge compares candidates by their first token, in both orders.

    Args:
        judge: the judge.
        failure: what it raises; None for nothing.
        answered: pairs that it compares before the deadline.
    """

    def __init__(
        self, judge: Judge, failure: JudgeFailure | None = None, answered: int = 10**6
    ) -> None:
        super().__init__(lambda *_: [])
        self._judge = judge
        self._failure = failure
        self._answered = answered
        self.asked: list[tuple[int, int]] = []

    async def compare(
        self, pairs: Sequence[tuple[Candidate, Candidate]]
    ) -> Sequence[Comparison | None]:
        if self._failure is not None:
            raise self._failure
        texts = [(a.token_ids[0], b.token_ids[0]) for a, b in pairs]
        self.asked += texts
        self._answered -= len(pairs)
        return [both_orders(self._judge, *two) if self._answered >= 0 else None for two in texts]


def both_orders(judge: Judge, a: int, b: int) -> Comparison:
    first, second = judge(a, b), judge(b, a)
    return Comparison((first + 1 - second) / 2, agreed=first == 1 - second)


def decided(
    proposal: Judged,
    tournament: str,
    texts: Sequence[int],
    scores: Sequence[float] | None = None,
    cut: Sequence[int] = (),
) -> Decision:
    """The decision between responses whose only token is their text; scores are 0 if absent."""
    totals = scores or [0.0] * len(texts)
    decision = Decision(
        candidates=[
            Candidate(token_ids=(text,), finish_reason="stop", cut=i in cut)
            for i, text in enumerate(texts)
        ],
        scores=[Score(total, {}) for total in totals],
        chosen=totals.index(max(totals)),
        tie=False,
        kl_bound=0.0,
        kl_estimate=0.0,
        kl_estimator="bound",
    )
    pairwise = Pairwise(judge="liked", tournament=tournament)  # type: ignore[arg-type]
    return finish(by_tournament(decision, proposal, pairwise))


def by_text(a: int, b: int) -> float:
    """Prefers the larger text."""
    return 0.5 if a == b else float(a > b)


def wins(decision: Decision) -> Sequence[float]:
    assert decision.comparisons is not None
    return decision.comparisons.wins


class TestSelection:
    @reproducible
    @given(texts=st.lists(st.integers(0, 20), min_size=1, max_size=12), data=st.data())
    @pytest.mark.parametrize("tournament", TOURNAMENTS)
    def test_judge_that_agrees_with_an_order_selects_its_maximum(
        self, tournament: str, texts: list[int], data: st.DataObject
    ) -> None:
        scores = data.draw(st.lists(st.floats(-1, 1), min_size=len(texts), max_size=len(texts)))
        decision = decided(Judged(by_text), tournament, texts, scores)
        best = max(texts)
        assert decision.candidate.token_ids == (best,)
        assert decision.comparisons is not None
        assert decision.comparisons.disagreements == decision.comparisons.missed == 0
        if texts.count(best) == 1:
            assert not decision.tie
            if tournament != "knockout":
                assert wins(decision)[decision.chosen] == len(texts) - 1
        elif tournament != "knockout":  # the highest score of the equal texts
            equal = [score for text, score in zip(texts, scores, strict=True) if text == best]
            assert decision.score.total == max(equal)
            assert decision.tie

    @reproducible
    @given(texts=st.lists(st.integers(), min_size=2, max_size=9, unique=True), data=st.data())
    @pytest.mark.parametrize("verdict", [0.0, 1.0])
    @pytest.mark.parametrize("tournament", TOURNAMENTS)
    def test_judge_that_prefers_a_position_gives_ties_only(
        self, tournament: str, verdict: float, texts: list[int], data: st.DataObject
    ) -> None:
        levels = st.sampled_from([0.0, 0.5, 1.0])
        scores = data.draw(st.lists(levels, min_size=len(texts), max_size=len(texts)))
        decision = decided(Judged(lambda *_: verdict), tournament, texts, scores)
        assert decision.comparisons is not None
        assert decision.comparisons.disagreements == decision.comparisons.made
        assert decision.tie
        if tournament == "knockout":
            assert decision.score.total == max(scores)
        else:
            assert decision.chosen == scores.index(max(scores))
            assert set(wins(decision)) == {(len(texts) - 1) / 2}

    @reproducible
    @given(texts=st.lists(st.integers(0, 6), min_size=1, max_size=9))
    @pytest.mark.parametrize("tournament", TOURNAMENTS)
    def test_pairs_of_texts_are_compared_once_and_equal_texts_never(
        self, tournament: str, texts: list[int]
    ) -> None:
        proposal = Judged(by_text)
        decision = decided(proposal, tournament, texts)
        assert all(a != b for a, b in proposal.asked)
        assert len({frozenset(pair) for pair in proposal.asked}) == len(proposal.asked)
        assert decision.comparisons is not None
        assert decision.comparisons.made == len(proposal.asked)
        assert sum(wins(decision)) == pairs_of(tournament, len(texts))
        if len(set(texts)) == len(texts):
            assert len(proposal.asked) == pairs_of(tournament, len(texts))
        elif tournament != "knockout":
            assert len(proposal.asked) == math.comb(len(set(texts)), 2)

    def test_borda_counts_a_tie_in_one_order_as_a_part_of_a_win_and_copeland_as_none(self) -> None:
        def judge(a: int, b: int) -> float:
            """0 beats 3 for sure; 1 beats 0, 2 and 3 in one order, and ties in the other."""
            if 1 in (a, b):
                return float(a == 1) if a < b else 0.5
            return float((a, b) in {(0, 2), (0, 3), (2, 3)})

        borda = decided(Judged(judge), "borda", [0, 1, 2, 3])
        copeland = decided(Judged(judge), "copeland", [0, 1, 2, 3])
        assert (borda.chosen, wins(borda)) == (0, [2.25, 2.25, 1.25, 0.25])
        assert borda.tie
        assert (copeland.chosen, wins(copeland)) == (1, [2, 3, 1, 0])
        assert not copeland.tie

    def test_odd_one_out_of_a_knockout_plays_first_in_the_next_round(self) -> None:
        proposal = Judged(by_text)
        decision = decided(proposal, "knockout", [1, 2, 3, 4, 5])
        assert proposal.asked == [(1, 2), (3, 4), (5, 2), (4, 5)]
        assert wins(decision) == [0, 1, 0, 1, 2]

    @pytest.mark.parametrize("tournament", TOURNAMENTS)
    def test_candidates_cut_by_the_deadline_take_no_part(self, tournament: str) -> None:
        proposal = Judged(by_text)
        decision = decided(proposal, tournament, [1, 2, 9], cut=[2])
        assert (decision.chosen, proposal.asked) == (1, [(1, 2)])

    @pytest.mark.parametrize("tournament", TOURNAMENTS)
    def test_pairs_that_the_deadline_leaves_uncompared_are_ties(self, tournament: str) -> None:
        decision = decided(Judged(by_text, answered=0), tournament, [1, 2, 3], [0.1, 0.3, 0.2])
        assert decision.comparisons is not None
        assert (decision.comparisons.made, decision.comparisons.disagreements) == (0, 0)
        assert decision.comparisons.missed == pairs_of(tournament, 3)
        assert decision.chosen == 1

    @pytest.mark.parametrize("tournament", TOURNAMENTS)
    def test_failed_judge_leaves_the_scores_or_the_first_candidate(self, tournament: str) -> None:
        for on_failure, chosen in (("skip", 2), ("base", 0)):
            failure = JudgeFailure("liked", on_failure)  # type: ignore[arg-type]
            decision = decided(Judged(by_text, failure), tournament, [1, 2, 3], [0.1, 0.2, 0.3])
            assert decision.chosen == chosen
            assert decision.score.failed == ("liked",)

    def test_failed_judge_leaves_the_threshold_to_the_score(self) -> None:
        class Failing(Toy):
            async def compare(self, pairs: object) -> Sequence[Comparison | None]:
                raise JudgeFailure("liked", "skip")

        for score, accepted in ((1.0, True), (1.5, False)):
            sent = policy("knockout", 2, threshold={"score": score})
            toy = Failing(lambda *_: [(A, E), (B, E)])
            (decision,) = finish(collect(BestOfN.run(sent, toy, None)))
            assert decision.score.total == 1.0
            assert decision.accepted == accepted


CYCLE = ((0, 1), (1, 2), (2, 0))
"""First tokens of which the first one is preferred: no order agrees with this judge."""


class Cyclic(Toy):
    """A proposal whose judge compares first tokens by ``CYCLE``."""

    async def compare(
        self, pairs: Sequence[tuple[Candidate, Candidate]]
    ) -> Sequence[Comparison | None]:
        return [both_orders(cyclic, a.token_ids[0], b.token_ids[0]) for a, b in pairs]


def cyclic(a: int, b: int) -> float:
    return 0.5 if a == b else float((a, b) in CYCLE)


def policy(tournament: str, n: int, **fields: Any) -> BestOfNPolicy:
    selection = {"pairwise": {"judge": "liked", "tournament": tournament}}
    sent = {"method": "best_of_n", "n": n, "selection": selection, **fields}
    parsed = parse(sent, {"best_of_n": BestOfNPolicy}, {})
    assert isinstance(parsed, BestOfNPolicy)
    return parsed


def winner(tournament: str, draws: Sequence[Tokens]) -> Tokens:
    """Winner of three draws, written out."""

    def beats(i: int, j: int) -> bool:
        verdict = 0.5 if draws[i] == draws[j] else cyclic(draws[i][0], draws[j][0])
        return verdict == 1 or (verdict == 0.5 and (-reward(draws[i]), i) < (-reward(draws[j]), j))

    if tournament == "knockout":
        semifinal = 0 if beats(0, 1) else 1
        return draws[2 if beats(2, semifinal) else semifinal]
    won = [0.0] * 3
    for i, j in combinations(range(3), 2):
        share = 0.5 if draws[i] == draws[j] else cyclic(draws[i][0], draws[j][0])
        won[i], won[j] = won[i] + share, won[j] + 1 - share
    return draws[min(range(3), key=lambda i: (-won[i], -reward(draws[i]), i))]


@pytest.mark.parametrize("tournament", TOURNAMENTS)
def test_distribution_is_that_of_all_draws_and_kl_is_within_the_bound(tournament: str) -> None:
    law = replay(lambda toy: BestOfN.run(policy(tournament, 3), toy, None), Cyclic)
    expected: defaultdict[Tokens, float] = defaultdict(float)
    for draws in product(RESPONSES, repeat=3):
        expected[winner(tournament, draws)] += math.prod(map(probability, draws))
    assert law.responses == pytest.approx(expected, abs=1e-12)
    assert 0.01 < law.kl <= law.kl_bound == pytest.approx(kl.best_of_n_bound(3))
    assert law.kl_estimate == law.kl_bound


class TestPolicy:
    @pytest.mark.parametrize(("tournament", "n"), [("knockout", 16), ("borda", 9), ("copeland", 9)])
    def test_comparisons_beyond_the_limit_are_refused(self, tournament: str, n: int) -> None:
        class Low(Limits):
            max_comparisons = pairs_of(tournament, n)

        policy(tournament, n).check_limits(Low())
        Low.max_comparisons -= 1
        with pytest.raises(
            PolicyError, match=f"compares {pairs_of(tournament, n)} pairs"
        ) as caught:
            policy(tournament, n).check_limits(Low())
        assert caught.value.param == "alignment.selection.pairwise.tournament"
        assert caught.value.reason == "limit"

    def test_rewards_are_required_for_a_threshold_only(self) -> None:
        assert not policy("knockout", 4).requires_rewards
        assert policy("knockout", 4, threshold={"score": 0.0}).requires_rewards
