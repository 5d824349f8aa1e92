"""Votes and minimum Bayes risk: the selection, its distribution and KL, and when a vote stops."""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdserve import kl
from cdserve.decoders import BestOfN, BestOfNPolicy, Candidate, Prefix, Score
from cdserve.decoders.candidate import AnswerClass, Votes
from cdserve.decoders.voting import (
    Certain,
    CertainPosterior,
    MinimumRiskRule,
    VoteRule,
    lead_probability,
    mean_agreement,
    posterior,
)
from cdserve.errors import PolicyError, ScoringError
from cdserve.policy import SoftmaxWeights, parse

from .toy import (
    RESPONSES,
    A,
    B,
    Distribution,
    Limits,
    Tokens,
    Toy,
    collect,
    finish,
    probability,
    replay,
)

reproducible = settings(derandomize=True, deadline=None, max_examples=200)
ANSWERS = st.lists(st.sampled_from(["x", "y", "z", None]), min_size=1, max_size=12)


def answering(*answers: str | None, cut: Sequence[int] = ()) -> list[Prefix]:
    """Whole responses with these answers."""
    return [
        (Candidate(token_ids=(i,), finish_reason="stop", answer=answer, cut=i in cut),)
        for i, answer in enumerate(answers)
    ]


def choice(
    rule: VoteRule | MinimumRiskRule, scores: Sequence[float], prefixes: Sequence[Prefix]
) -> int:
    (index,) = rule.keep(scores, prefixes)
    return index


def classes(rule: VoteRule) -> list[tuple[str, int, float]]:
    assert rule.votes is not None
    return [(each.answer, each.count, each.weight) for each in rule.votes.classes]


class TestVote:
    def test_vote_returns_the_best_member_of_the_most_frequent_answer(self) -> None:
        rule = VoteRule("count")
        assert choice(rule, [9, 1, 2, 2], answering("x", "y", "y", "y")) == 2
        assert classes(rule) == [("y", 3, 3.0), ("x", 1, 1.0)]
        assert not rule.tie

    def test_vote_tie_goes_to_the_answer_begun_first(self) -> None:
        rule = VoteRule("count")
        assert choice(rule, [0, 5, 9, 1], answering("x", "y", "y", "x")) == 3
        assert rule.tie

    def test_responses_without_an_answer_do_not_vote(self) -> None:
        rule = VoteRule("count")
        assert choice(rule, [0, 5, 5], answering("x", None, None)) == 0
        assert rule.votes is not None
        assert rule.votes.unanswered == 2

    def test_vote_without_any_answer_returns_the_best_response(self) -> None:
        rule = VoteRule("count")
        assert choice(rule, [1, 3, 2], answering(None, None, None)) == 1
        assert classes(rule) == []

    def test_candidates_cut_by_the_deadline_do_not_vote(self) -> None:
        rule = VoteRule("count")
        prefixes = answering("x", "y", "y", cut=[1, 2])
        assert choice(rule, [0.0, -math.inf, -math.inf], prefixes) == 0
        assert classes(rule) == [("x", 1, 1.0)]

    def test_vote_with_all_candidates_cut_returns_the_best_response(self) -> None:
        rule = VoteRule("count")
        assert choice(rule, [1.0, 2.0, 0.0], answering("x", "y", "x", cut=[0, 1, 2])) == 1
        assert rule.votes is not None
        assert (classes(rule), rule.votes.unanswered) == ([], 3)

    def test_reward_weights_are_sums_of_scores(self) -> None:
        rule = VoteRule("reward")
        assert choice(rule, [0.9, 0.25, 0.5, 0.25], answering("x", "y", "y", "y")) == 2
        assert classes(rule) == [("y", 3, 1.0), ("x", 1, 0.9)]

    def test_reward_weights_reject_a_negative_score(self) -> None:
        with pytest.raises(ScoringError, match=r"score is -0\.5; .*'reward'.*softmax"):
            choice(VoteRule("reward"), [1.0, -0.5], answering("x", "y"))

    def test_reward_weights_ignore_scores_of_responses_that_do_not_vote(self) -> None:
        assert choice(VoteRule("reward"), [1.0, -0.5], answering("x", None)) == 0

    def test_softmax_weights_sum_to_one_and_ignore_a_constant(self) -> None:
        rule = VoteRule(SoftmaxWeights(softmax=0.5))
        for constant in (-1000.0, 0.0, 1000.0):
            scores = [constant + score for score in (1.0, 0.0, 0.5)]
            assert choice(rule, scores, answering("x", "y", "y")) == 0
            (_, _, first), (_, _, second) = classes(rule)
            assert first / second == pytest.approx(math.exp(2) / (1 + math.exp(1)))
            assert first + second == pytest.approx(1.0)

    def test_large_softmax_temperature_counts_votes(self) -> None:
        rule = VoteRule(SoftmaxWeights(softmax=1e9))
        assert choice(rule, [1.0, 0.0, 0.5], answering("x", "y", "y")) == 2

    @reproducible
    @given(ANSWERS, st.randoms(use_true_random=False))
    def test_winner_has_as_many_votes_as_any_answer(
        self, answers: list[str | None], rng: random.Random
    ) -> None:
        rule = VoteRule("count")
        scores = [rng.random() for _ in answers]
        chosen = choice(rule, scores, answering(*answers))
        counts = Counter(answer for answer in answers if answer is not None)
        winner = answers[chosen]
        if not counts:
            assert scores[chosen] == max(scores)
            return
        assert winner is not None
        assert counts[winner] == max(counts.values())
        assert scores[chosen] == max(
            score for score, answer in zip(scores, answers, strict=True) if answer == winner
        )


class TestAgreement:
    @staticmethod
    def by_counting(texts: Sequence[Sequence[int]]) -> list[float]:
        """Mean F1 of each text with the others, from the counts of their tokens."""

        def f1(a: Sequence[int], b: Sequence[int]) -> float:
            common = (Counter(a) & Counter(b)).total()
            return 2 * common / (len(a) + len(b)) if a or b else 1.0

        return [
            sum(f1(a, b) for j, b in enumerate(texts) if i != j) / max(1, len(texts) - 1)
            for i, a in enumerate(texts)
        ]

    @reproducible
    @given(st.lists(st.lists(st.integers(0, 4), max_size=8), min_size=1, max_size=6))
    def test_mean_agreement_equals_the_f1_of_token_counts(self, texts: list[list[int]]) -> None:
        assert mean_agreement(texts) == pytest.approx(self.by_counting(texts), abs=1e-12)

    def test_128_texts_of_1000_tokens_take_little_time(self) -> None:
        rng = random.Random(0)
        texts = [[int(50_000 * rng.random() ** 6) for _ in range(1000)] for _ in range(128)]
        started = time.process_time()
        mean_agreement(texts)
        assert time.process_time() - started < 1.0

    def test_minimum_risk_without_scores_returns_the_central_response(self) -> None:
        texts = [(1, 2, 3), (1, 2, 4), (7, 8, 9)]
        prefixes: list[Prefix] = [
            (Candidate(token_ids=text, finish_reason="stop"),) for text in texts
        ]
        rule = MinimumRiskRule(1.0)
        assert choice(rule, [0.0, 0.0, 0.0], prefixes) == 0
        assert rule.tie
        assert choice(rule, [0.0, 0.0, 0.3], prefixes) == 0
        assert choice(rule, [0.0, 0.0, 0.4], prefixes) == 2
        assert choice(MinimumRiskRule(2.0), [0.0, 0.0, 0.4], prefixes) == 0
        assert choice(rule, [-math.inf, 0.0, 0.0], prefixes) == 1

    def test_minimum_risk_of_one_response_returns_it(self) -> None:
        assert choice(MinimumRiskRule(1.0), [0.5], answering(None)) == 0


def final_winner(answers: Sequence[str | None]) -> str | None:
    """Answer of a vote by count over all these."""
    rule = VoteRule("count")
    return answers[choice(rule, [0.0] * len(answers), answering(*answers))]


class TestCertain:
    def test_certain_vote_stops_exactly_when_no_other_answer_can_win(self) -> None:
        n = 5
        names = ["x", "y", "z", "w", "v", None]
        stop = Certain(1.0, n)
        for seen in range(1, n):
            for answers in product([*names[:3], None], repeat=seen):
                winners = {
                    final_winner([*answers, *rest]) for rest in product(names, repeat=n - seen)
                }
                stopped = stop.should_stop([0.0] * seen, [1] * seen, answers)
                assert stopped == (len(winners) == 1 and winners != {None}), answers

    @pytest.mark.parametrize(("lead", "second"), [(0, 0), (1, 0), (4, 0), (3, 2), (17, 9)])
    def test_lead_probability_is_the_tail_of_the_beta_distribution(
        self, lead: int, second: int
    ) -> None:
        def integral(low: Fraction) -> Fraction:
            """∫ x^lead (1 - x)^second dx over (low, 1), by the binomial theorem."""
            return sum(
                (
                    Fraction((-1) ** k * math.comb(second, k), lead + k + 1)
                    * (1 - low ** (lead + k + 1))
                    for k in range(second + 1)
                ),
                Fraction(),
            )

        expected = integral(Fraction(1, 2)) / integral(Fraction())
        assert lead_probability(lead, second) == pytest.approx(float(expected), abs=1e-12)

    def test_certain_vote_stops_from_its_probability_on(self) -> None:
        stop = Certain(0.95, 64)
        counts = [stop.should_stop([0.0] * j, [1] * j, ["x"] * j) for j in range(1, 7)]
        assert counts == [False, False, False, True, True, True]  # 1 - 2^-(j + 1) ≥ .95
        assert not stop.should_stop([0.0] * 3, [1] * 3, [None] * 3)


CONFIDENCES = st.lists(
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4), min_size=1, max_size=4
)


class TestPosterior:
    @reproducible
    @given(confidences=CONFIDENCES)
    def test_posterior_is_bayes_rule_over_the_answers_and_one_not_seen(
        self, confidences: list[list[float]]
    ) -> None:
        count = len(confidences)
        likelihoods = [
            math.prod(
                c if answer == truth else (1 - c) / count
                for answer, each in enumerate(confidences)
                for c in each
            )
            for truth in range(count + 1)
        ]
        expected = [likelihood / math.fsum(likelihoods) for likelihood in likelihoods[:-1]]
        assert posterior(confidences) == pytest.approx(expected, abs=1e-9)

    @reproducible
    @given(confidence=st.floats(0.001, 0.999))
    def test_posterior_of_one_response_is_its_confidence(self, confidence: float) -> None:
        assert posterior([[confidence]]) == pytest.approx([confidence])

    def test_confidences_of_0_and_1_are_finite(self) -> None:
        assert posterior([[1.0] * 600, [0.0] * 600]) == pytest.approx([1.0, 0.0])

    @pytest.mark.parametrize("confidence", [-0.1, 1.1])
    def test_score_that_is_not_a_probability_is_an_error(self, confidence: float) -> None:
        with pytest.raises(ScoringError, match=r"'posterior', which needs probabilities"):
            choice(VoteRule("posterior"), [0.5, confidence], answering("x", "y"))

    def test_sure_response_outweighs_two_unsure_ones(self) -> None:
        rule = VoteRule("posterior")
        scores = [0.3, 0.9, 0.3]
        assert choice(rule, scores, answering("x", "y", "x")) == 1
        assert classes(rule) == [
            ("y", 1, pytest.approx(18 / (18 + 36 / 49 + 1))),
            ("x", 2, pytest.approx(36 / 49 / (18 + 36 / 49 + 1))),
        ]

    def test_votes_count_if_a_reward_failed(self) -> None:
        rule = VoteRule("posterior")
        ranks = rule.rank([Score(0.0, {}, ("prm",))] * 3)
        assert choice(rule, ranks, answering("x", "y", "y")) == 1
        assert classes(rule) == [("y", 2, 2.0), ("x", 1, 1.0)]

    def test_vote_stops_from_the_posterior_on(self) -> None:
        stop = CertainPosterior(0.95)
        assert not stop.should_stop([0.9], [1], ["x"])
        assert stop.should_stop([0.9, 0.9], [1, 1], ["x", "x"])
        assert not stop.should_stop([0.9, 0.9, 0.9], [1] * 3, ["x", "x", "y"])
        assert not stop.should_stop([0.99], [1], [None])

    def test_stopped_vote_draws_until_one_answer_is_probable(self) -> None:
        policy = vote("posterior", stop={"certain": 0.9}, at_once=1, n=3)
        draws = [(A, A, B), (A, B, B), (A, B, A)]  # answers 2, 1, 2 with confidences 1/3, 2/3, 1/3
        (decision,) = asyncio.run(collect(BestOfN.run(policy, Graded(draws), None)))
        assert [each.answer for each in decision.candidates] == ["2", "1", "2"]
        assert decision.candidate.answer == "1"
        draws = [(B, B, B), (A, B, B), (A, B, A)]
        (decision,) = asyncio.run(collect(BestOfN.run(policy, Graded(draws), None)))
        assert len(decision.candidates) == 1


def vote(weights: Any = "count", **fields: Any) -> BestOfNPolicy:
    selection = {"vote": {"extract": "last_number", "weights": weights}}
    policy = parse(
        {"method": "best_of_n", "n": 3, "selection": selection, **fields},
        {"best_of_n": BestOfNPolicy},
        {},
    )
    assert isinstance(policy, BestOfNPolicy)
    return policy


def answer(tokens: Tokens) -> str | None:
    """Number of a's in a response; no answer if it has neither a nor b."""
    return str(tokens.count(A)) if A in tokens or B in tokens else None


class Answering(Toy):
    """ab3 whose responses have answers."""

    async def sample(
        self,
        prefixes: Sequence[Prefix],
        count: int,
        max_tokens: int | None,
        budget: float | None = None,
    ) -> Sequence[Candidate]:
        drawn = await super().sample(prefixes, count, max_tokens, budget)
        return [replace(each, answer=answer(each.token_ids)) for each in drawn]


class Listed(Answering):
    """Draws the given responses, in order."""

    def __init__(self, responses: Sequence[Tokens]) -> None:
        super().__init__(lambda *_: responses)

    async def draw(self, index: int, budget: float | None = None) -> Candidate:
        return (await self.sample([()], 1, None))[index]


class Graded(Listed):
    """Draws the given responses, and scores them by a probability: a third of #b."""

    async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        totals = [score.total / 3 for score in await super().score(prefixes)]
        return [Score(total, {"b": total}) for total in totals]


MBR = {"mbr": {"beta": 2.0}}


POLICIES = {
    "count": vote(),
    "reward": vote("reward"),
    "softmax": vote({"softmax": 0.5}),
    "posterior": vote("posterior"),
    "probable": vote("posterior", stop={"certain": 0.75}),
    "mbr": vote(selection=MBR),
    "certain": vote(stop={"certain": 1}),
    "likely": vote(stop={"certain": 0.75}),
}


@cache
def served(name: str) -> Distribution:
    """Distribution of the responses of a policy with n = 3 on ab3."""
    policy = POLICIES[name]
    if policy.stop is None and name != "posterior":
        return replay(lambda toy: BestOfN.run(policy, toy, None), Answering)

    async def stopped() -> Distribution:
        responses: Counter[Tokens] = Counter()
        for drawn in product(RESPONSES, repeat=3):
            toy = Graded(drawn) if name in ("posterior", "probable") else Listed(drawn)
            (decision,) = await collect(BestOfN.run(policy, toy, None))
            responses[decision.candidate.token_ids] += math.prod(map(probability, drawn))
            bounds = {decision.kl_bound, decision.kl_estimate, kl.best_of_n_bound(3)}
            assert len(bounds) == 1
        bound = kl.best_of_n_bound(3)
        return Distribution(dict(responses), kl_bound=bound, kl_estimate=bound)

    return asyncio.run(stopped())


class TestDistribution:
    @pytest.mark.parametrize("name", POLICIES)
    def test_kl_is_within_the_bound_of_best_of_n(self, name: str) -> None:
        distribution = served(name)
        assert sum(distribution.responses.values()) == pytest.approx(1.0, abs=1e-9)
        assert 0 < distribution.kl < kl.best_of_n_bound(3)
        assert distribution.kl_bound == pytest.approx(kl.best_of_n_bound(3))
        assert distribution.kl_estimate == pytest.approx(kl.best_of_n_bound(3))
        for tokens, p in distribution.responses.items():
            assert p <= 1 - (1 - probability(tokens)) ** 3 + 1e-12

    def test_votes_change_the_frequencies_of_answers_as_enumerated(self) -> None:
        """P(answer) by counting all draws of three answers, whatever the responses."""
        p: Counter[str | None] = Counter()
        for tokens in served("count").responses:
            p[answer(tokens)] += probability(tokens)
        expected: Counter[str | None] = Counter()
        for draws in product(p, repeat=3):
            counts = Counter(each for each in draws if each is not None)
            winner = max(counts, key=counts.__getitem__) if counts else None
            expected[winner] += math.prod(p[each] for each in draws)
        for name in ("count", "certain"):
            voted: Counter[str | None] = Counter()
            for tokens, mass in served(name).responses.items():
                voted[answer(tokens)] += mass
            assert voted == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("at_once", [None, 1, 2])
    async def test_stop_of_a_vote_saves_draws_and_keeps_the_answer(
        self, at_once: int | None
    ) -> None:
        policy = vote(stop={"certain": 1}, at_once=at_once)
        proposal = Listed([(A, B, B), (B, B, A), (B, B, B)])
        (decision,) = await collect(BestOfN.run(policy, proposal, None))
        assert len(decision.candidates) == 2
        assert decision.candidate.answer == "1"
        assert decision.draws is not None
        assert decision.draws.made == 2 + len(decision.unused)
        assert decision.draws.allowed == 3
        assert decision.votes == Votes([AnswerClass("1", 2, 2.0)], 0)

    def test_budget_draws_as_many_candidates_as_its_bound_allows(self) -> None:
        policy = vote(kl_budget=kl.best_of_n_bound(2) + 1e-9)
        proposal = Answering(lambda prefix, count, m: [(A, A, A)] * count)
        (decision,) = finish(collect(BestOfN.run(policy, proposal, None)))
        assert len(decision.candidates) == 2
        assert decision.kl_bound == pytest.approx(kl.best_of_n_bound(2))


class TestPolicy:
    @pytest.mark.parametrize(
        ("fields", "requires"),
        [
            ({}, False),
            ({"selection": {"mbr": {}}}, False),
            ({"threshold": {"score": 1.0}}, True),
            ({"selection": "argmax"}, True),
        ],
    )
    def test_only_policies_that_read_scores_require_rewards(
        self, fields: dict[str, Any], requires: bool
    ) -> None:
        assert vote(**fields).requires_rewards is requires

    @pytest.mark.parametrize("weights", ["reward", {"softmax": 1.0}])
    def test_weighted_vote_requires_rewards(self, weights: Any) -> None:
        assert vote(weights).requires_rewards

    @pytest.mark.parametrize(
        ("weights", "fields", "param"),
        [
            ("count", {"stop": {"threshold": 1.0}}, "alignment.stop"),
            ("count", {"stop": {"gain_per_token": 0.1}}, "alignment.stop"),
            ("reward", {"stop": {"certain": 0.9}}, "alignment.stop.certain"),
            ("count", {"selection": MBR, "stop": {"certain": 0.9}}, "alignment.stop.certain"),
            ("count", {"selection": "argmax", "stop": {"certain": 1}}, "alignment.stop.certain"),
            ("count", {"race": {"delta": 0.1}}, "alignment.race"),
            ("count", {"selection": MBR, "race": {"delta": 0.1}}, "alignment.race"),
        ],
    )
    def test_conflicting_fields_are_refused_by_name(
        self, weights: str, fields: dict[str, Any], param: str
    ) -> None:
        with pytest.raises(PolicyError) as caught:
            vote(weights, **fields).check_limits(Limits())
        assert caught.value.param == param
        assert caught.value.reason == "combination"
