"""Race: the chances of responses, the plan of a round, and the distribution of the response."""

import math
from collections.abc import Sequence
from itertools import pairwise, permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdserve import kl, report
from cdserve.decoders import BestOfN, BestOfNPolicy, Candidate, Decision, Outlook, Prefix, Score
from cdserve.decoders.race import Finals, Race, Runner
from cdserve.errors import PolicyError
from cdserve.policy import Stop, StopAtThreshold, StopByGain

from .toy import (
    RESPONSES,
    Distribution,
    Limits,
    Tokens,
    Toy,
    collect,
    finish,
    probability,
    replay,
    reward,
    text,
    value,
)

SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=8)


def normal_below(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def deviation(tokens: int) -> float:
    """A deviation of the final reward on ab3 that falls with the length of the prefix."""
    return (0.6, 0.5, 0.4, 0.3)[tokens]


def outlook(tokens: int) -> Outlook:
    return Outlook(tokens=1.0, deviation=deviation(tokens), gains=())


def policy(**fields: Any) -> BestOfNPolicy:
    sent = {"method": "best_of_n", "n": 3, "race": {"delta": 0.05, "every": 1}, **fields}
    return BestOfNPolicy.model_validate(sent)


def win_chances(scores: Sequence[float], deviations: Sequence[float]) -> list[float]:
    return Finals(scores, deviations).win_chances()


class TestChances:
    @pytest.mark.parametrize("ratio", [0.3, 1.0, 2.0])
    @pytest.mark.parametrize(("score", "spread"), [(0.0, 1.0), (0.7, 0.5), (3.0, 1.5)])
    def test_two_unfinished_responses_have_the_closed_form(
        self, score: float, spread: float, ratio: float
    ) -> None:
        chances = win_chances([0.2, 0.2 + score], [spread, ratio * spread])
        ahead = normal_below(score / spread / math.hypot(1.0, ratio))
        assert chances == pytest.approx([1.0 - ahead, ahead], abs=1e-5)

    @pytest.mark.parametrize("score", [-2.0, -0.3, 0.0, 1.1])
    def test_ended_response_wins_if_all_others_end_below(self, score: float) -> None:
        chances = win_chances([0.5, 0.1, score], [0.0, 0.8, 0.4])
        below = normal_below(0.4 / 0.8) * normal_below((0.5 - score) / 0.4)
        assert chances[0] == pytest.approx(below, abs=1e-5)

    def test_chances_equal_integration_over_all_final_scores(self) -> None:
        scores, spreads = [0.0, 0.4, -0.3], [0.5, 0.3, 0.8]
        x = np.linspace(-4, 4, 161)
        density = [
            np.exp(-(((x - score) / spread) ** 2) / 2)
            for score, spread in zip(scores, spreads, strict=True)
        ]
        joint = math.prod(np.ix_(*density))
        final = np.stack(np.meshgrid(x, x, x, indexing="ij"))
        highest = final == final.max(0)
        shares = highest / highest.sum(0)  # equal numbers of the grid share the win
        expected = [(joint * share).sum() / joint.sum() for share in shares]
        assert win_chances(scores, spreads) == pytest.approx(expected, abs=1e-3)

    @given(SCORES, st.floats(0.01, 10), st.data())
    def test_chances_sum_to_one_in_the_order_of_unfinished_scores(
        self, scores: Sequence[float], spread: float, data: st.DataObject
    ) -> None:
        size = {"min_size": len(scores), "max_size": len(scores)}
        spreads = data.draw(st.lists(st.sampled_from([0.0, spread]), **size))
        chances = win_chances(scores, spreads)
        assert math.isclose(sum(chances), 1.0, abs_tol=1e-9)
        assert min(chances) >= 0.0
        unfinished = sorted(
            (score, chance)
            for score, chance, wide in zip(scores, chances, spreads, strict=True)
            if wide
        )
        assert all(low[1] <= high[1] + 1e-9 for low, high in pairwise(unfinished))

    def test_first_of_equal_final_scores_wins(self) -> None:
        assert win_chances([1.0, 2.0, 2.0], [0.0] * 3) == [0.0, 1.0, 0.0]


class TestWorthwhile:
    @pytest.mark.parametrize("score", [-1.0, 0.0, 0.6])
    def test_gain_over_a_final_score_has_the_closed_form(self, score: float) -> None:
        finals, z = Finals([score, 0.3], [0.5, 0.0]), (0.3 - score) / 0.5
        gain = 0.5 * (math.exp(-z * z / 2) / math.sqrt(2 * math.pi) - z * normal_below(-z))
        assert finals.worthwhile([0], {0: 0.99 * gain}) == [0]
        assert finals.worthwhile([0], {0: 1.01 * gain}) == []

    def test_gain_over_a_response_taken_before_has_the_closed_form(self) -> None:
        finals = Finals([0.4, 0.1], [0.5, 0.7])
        spread, z = math.hypot(0.5, 0.7), 0.3 / math.hypot(0.5, 0.7)
        gain = spread * (math.exp(-z * z / 2) / math.sqrt(2 * math.pi) - z * normal_below(-z))
        assert finals.worthwhile([0, 1], {0: 9.0, 1: 0.99 * gain}) == [0, 1]
        assert finals.worthwhile([0, 1], {0: 9.0, 1: 1.01 * gain}) == [0]

    def test_first_response_is_taken_at_any_price_if_none_has_ended(self) -> None:
        assert Finals([0.4, 0.1], [0.5, 0.7]).worthwhile([1, 0], {0: 1e9, 1: 1e9}) == [1]


class TestPlan:
    @staticmethod
    def runner(score: float, tokens: int = 4, ended: bool = False) -> Runner:
        block = Candidate(token_ids=(0,) * tokens, finish_reason="stop" if ended else None)
        return Runner((block,), Score(score, {}))

    @staticmethod
    def race(spread: float, delta: float = 0.05, **fields: Any) -> Race:
        def outlook(tokens: int) -> Outlook:
            return Outlook(tokens=20.0 - tokens, deviation=spread, gains=())

        return Race(delta, **{"stop": None, "outlook": outlook, **fields})

    def kept(self, race: Race, *runners: Runner) -> list[int]:
        """Indices of the responses that a plan does not give up."""
        race.plan(runners, 0, places=9)
        return [i for i, runner in enumerate(runners) if not runner.given_up]

    def test_hopeless_responses_are_given_up(self) -> None:
        runners = map(self.runner, [0.0, 1.0, 0.9])
        assert self.kept(self.race(0.2), *runners) == [1, 2]

    def test_sure_favourite_is_kept_alone(self) -> None:
        runners = map(self.runner, [0.5, 1.0, 0.6])
        assert self.kept(self.race(0.2, delta=0.2), *runners) == [1]

    def test_favourite_is_kept_even_below_delta(self) -> None:
        runners = map(self.runner, [0.0, 0.1, 0.0])
        assert self.kept(self.race(1.0, delta=0.34), *runners) == [1]

    def test_ended_response_stays_until_others_cannot_pass_it(self) -> None:
        ended = self.runner(0.5, ended=True)
        low, high = map(self.runner, [-1.0, 4.0])
        assert self.kept(self.race(0.5), ended, self.runner(0.4)) == [0, 1]
        assert not self.race(0.5).plan([ended, low], 0, places=9).grow
        assert self.kept(self.race(0.5), ended, high) == [1]

    def test_ended_response_stays_though_its_chance_among_many_is_low(self) -> None:
        stop = StopByGain(gain_per_token=0.02)
        race, ended = self.race(1.0, delta=0.02, stop=stop), self.runner(0.8, ended=True)
        assert race.plan([ended], 40, places=1).begin == 0
        assert not ended.given_up

    def test_response_that_has_not_begun_competes_around_the_mean(self) -> None:
        low, high = self.runner(-1.0), self.runner(1.0)
        plan = self.race(1.0).plan([low, high], 2, places=1)
        assert (plan.grow, plan.begin, plan.more) == ([high], 0, True)
        plan = self.race(1.0).plan([low], 2, places=1)
        assert (plan.grow, plan.begin, plan.more) == ([], 1, True)
        plan = self.race(0.1).plan([self.runner(2.0)], 2, places=3)
        assert (plan.begin, plan.more) == (0, False)

    def test_places_go_to_the_best_chances_per_token_to_come(self) -> None:
        near, far = self.runner(0.0, tokens=16), self.runner(0.1, tokens=4)
        assert self.race(1.0).plan([far, near], 0, places=1).grow == [near]
        assert self.race(1.0).plan([far, near], 0, places=2).grow == [near, far]

    def test_threshold_ends_the_race_at_a_final_score_only(self) -> None:
        race = self.race(1.0, stop=StopAtThreshold(threshold=1.0))
        assert race.plan([self.runner(1.2), self.runner(0.9, ended=True)], 3, places=9).grow
        plan = race.plan([self.runner(1.2), self.runner(1.0, ended=True)], 3, places=9)
        assert (plan.grow, plan.begin, plan.more) == ((), 0, False)

    @pytest.mark.parametrize(("price", "begun"), [(0.0, 3), (0.01, 3), (0.1, 0)])
    def test_gain_rule_begins_responses_only_below_their_expected_gain(
        self, price: float, begun: int
    ) -> None:
        race = self.race(1.0, stop=StopByGain(gain_per_token=price))
        assert race.plan([self.runner(0.0, ended=True)], 5, places=3).begin == begun

    @pytest.mark.parametrize("stop", [StopAtThreshold(threshold=0.0), StopByGain(gain_per_token=9)])
    def test_stop_has_no_effect_on_scores_with_a_failed_reward(self, stop: Stop) -> None:
        ended = self.runner(0.0, ended=True)
        assert not self.race(1.0, stop=stop).plan([ended], 2, places=9).begin
        ended.score = Score(0.0, {}, failed=("r",))
        assert self.race(1.0, stop=stop).plan([ended], 2, places=9).begin == 2


class Drawn(Toy):
    """ab3 with fixed responses, the i-th of which is the i-th that begins."""

    def __init__(self, drawn: Sequence[Tokens], late: float = math.inf) -> None:
        super().__init__(lambda *_: ())
        self.left = list(enumerate(drawn))[::-1]
        self.drawn = drawn
        self.rounds: list[int] = []
        """Responses that grew in each round."""
        self.tokens_drawn = 0
        self.late = late
        """Rounds after which the deadline has passed."""

    @property
    def deadline_passed(self) -> bool:
        return len(self.rounds) >= self.late

    @deadline_passed.setter
    def deadline_passed(self, passed: bool) -> None:
        assert not passed

    async def sample(
        self,
        prefixes: Sequence[Prefix],
        count: int,
        max_tokens: int | None,
        budget: float | None = None,
    ) -> Sequence[Candidate]:
        assert max_tokens
        passed = self.deadline_passed
        self.rounds.append(len(prefixes))
        blocks = []
        for prefix in prefixes:
            index = int(prefix[0].text) if prefix else self.left.pop()[0]
            before, whole = self.tokens(prefix), self.drawn[index]
            block = whole[len(before) :][: 0 if passed else max_tokens]
            reason = "stop" if before + block == whole else None
            cut = reason is None and self.deadline_passed
            blocks.append(
                Candidate(token_ids=block, finish_reason=reason, text=str(index), cut=cut)
            )
            self.tokens_drawn += len(block)
        return blocks

    def outlook(self, tokens: int) -> Outlook:
        return outlook(tokens)


def raced(toy: Drawn, **fields: Any) -> list[Decision]:
    """Decisions of a race of three responses that gives up hardly any."""
    parsed = policy(**{"race": {"delta": 1e-9, "every": 1}, **fields})
    return finish(collect(BestOfN.run(parsed, toy, None)))


class TestRace:
    GOOD: Tokens = (1, 1, 1)
    FAIR: Tokens = (1, 0, 2)
    BAD: Tokens = (0, 0, 0)

    @pytest.mark.parametrize("at_once", [1, 2, 3, 5])
    @pytest.mark.parametrize("stop", [None, {"gain_per_token": 0}, {"threshold": 9}])
    def test_race_that_gives_up_nothing_returns_the_best(self, at_once: int, stop: Any) -> None:
        fields = {"at_once": at_once} | ({} if stop is None else {"stop": stop})
        for drawn in permutations([self.GOOD, self.FAIR, self.BAD]):
            toy = Drawn(drawn)
            decisions = raced(toy, **fields)
            assert text(decisions) == self.GOOD
            assert max(toy.rounds) <= at_once

    @pytest.mark.parametrize("at_once", [1, 2, 3])
    @pytest.mark.parametrize("delta", [1e-9, 0.1, 0.3])
    def test_decisions_list_all_candidates_once(self, at_once: int, delta: float) -> None:
        for drawn in product(RESPONSES[::2], repeat=3):
            toy = Drawn(drawn)
            decisions = raced(toy, at_once=at_once, race={"delta": delta, "every": 1})
            listed = [candidate for decision in decisions for candidate in decision.candidates]
            assert len(set(map(id, listed))) == len(listed) == sum(toy.rounds)
            assert sum(len(candidate.token_ids) for candidate in listed) == toy.tokens_drawn
            assert text(decisions) in drawn
            assert sum(decision.kl_bound for decision in decisions) == kl.best_of_n_bound(3)

    def test_high_price_begins_one_response(self) -> None:
        toy = Drawn([self.GOOD, self.BAD, self.BAD])
        made = report.report(
            "best_of_n", raced(toy, at_once=1, stop={"gain_per_token": 9}), trace=False
        )
        assert made["draws"] == {"made": 1, "allowed": 3}
        assert (made["candidate_tokens"], made["saved_tokens"]) == (3, 2 * 3)

    def test_threshold_leaves_waiting_responses_unfinished(self) -> None:
        toy = Drawn([self.FAIR, self.GOOD, self.BAD])
        decisions = raced(toy, at_once=2, stop={"threshold": 1.0})
        assert text(decisions) in (self.FAIR, self.GOOD)
        assert decisions[-1].draws is not None
        assert decisions[-1].draws.saved_tokens > 0

    def test_blocks_are_yielded_once_a_single_response_is_left(self) -> None:
        async def rounds(toy: Drawn) -> list[int]:
            decisions = BestOfN.run(policy(race={"delta": 0.3, "every": 1}), toy, None)
            return [len(toy.rounds) async for _ in decisions]

        assert finish(rounds(Drawn([self.GOOD, self.BAD, self.BAD]))) == [1, 2, 3]
        assert finish(rounds(Drawn([self.GOOD, self.GOOD, self.BAD]))) == [3, 3, 3]


class TestDeadline:
    def test_nothing_begins_after_the_deadline(self) -> None:
        toy = Drawn([TestRace.BAD, TestRace.GOOD, TestRace.GOOD], late=1)
        decisions = raced(toy, at_once=1)
        assert decisions[-1].candidate.finish_reason == "deadline"
        assert decisions[-1].draws is not None
        assert (decisions[-1].draws.made, decisions[-1].draws.allowed) == (1, 1)

    def test_one_response_begins_if_the_deadline_has_passed_before(self) -> None:
        toy = Drawn([TestRace.GOOD] * 3, late=0)
        raced(toy)
        assert toy.rounds == [1]

    @pytest.mark.parametrize("stop", [{"threshold": 9.0}, {"gain_per_token": 0.0}])
    def test_cut_response_is_selected_only_if_all_are_cut(self, stop: Any) -> None:
        for late in (1, 2):
            toy = Drawn([(2,), TestRace.GOOD, TestRace.GOOD], late=late)
            decisions = raced(toy, stop=stop)
            assert text(decisions) == (2,)
            assert not decisions[-1].candidate.cut


class TestDistribution:
    @pytest.mark.parametrize(("n", "delta", "every"), [(2, 0.05, 1), (3, 0.2, 1), (3, 0.1, 2)])
    def test_race_has_the_enumerated_distribution(
        self, monkeypatch: pytest.MonkeyPatch, n: int, delta: float, every: int
    ) -> None:
        def asked(toy: Toy) -> Any:
            monkeypatch.setattr(toy, "outlook", outlook, raising=False)
            return BestOfN.run(policy(n=n, race={"delta": delta, "every": every}), toy, None)

        served = replay(asked)
        assert served.responses == pytest.approx(reference(n, delta, every), abs=1e-12)
        assert served.kl <= served.kl_bound + 1e-12
        assert served.kl_bound == pytest.approx(kl.best_of_n_bound(n), abs=1e-12)

    @pytest.mark.parametrize(
        ("n", "at_once", "every", "stop"),
        [
            (2, 1, 1, None),
            (2, 1, 1, {"threshold": 2.0}),
            (2, 1, 1, {"gain_per_token": 0.02}),
            (2, 1, 2, {"gain_per_token": 0.3}),
            (2, 2, 1, {"gain_per_token": 0.3}),
            (3, 1, 2, {"gain_per_token": 0.05}),
        ],
    )
    def test_kl_with_stop_and_at_once_is_within_the_bound_of_n(
        self, stop: Any, n: int, at_once: int, every: int
    ) -> None:
        fields = {"n": n, "at_once": at_once, "race": {"delta": 0.1, "every": every}}
        responses = dict.fromkeys(RESPONSES, 0.0)
        for drawn in product(RESPONSES, repeat=n):
            decisions = raced(Drawn(drawn), **fields, **({} if stop is None else {"stop": stop}))
            responses[text(decisions)] += math.prod(map(probability, drawn))
        served = Distribution(responses)
        assert sum(responses.values()) == pytest.approx(1, abs=1e-12)
        assert served.kl <= kl.best_of_n_bound(n) + 1e-12
        for subset in ({y for y in RESPONSES if reward(y) >= r} for r in (1, 2, 3)):
            hit = sum(p for y, p in responses.items() if y in subset)
            missed = 1 - sum(map(probability, subset))
            assert hit <= 1 - missed**n + 1e-12


def reference(n: int, delta: float, every: int) -> dict[Tokens, float]:
    """The distribution, from every way in which n whole responses can fall."""
    distribution = dict.fromkeys(RESPONSES, 0.0)
    for drawn in product(RESPONSES, repeat=n):
        distribution[returned(drawn, delta, every)] += math.prod(map(probability, drawn))
    return {response: p for response, p in distribution.items() if p > 0}


def returned(drawn: tuple[Tokens, ...], delta: float, every: int) -> Tokens:
    """The response of a race of all responses at once."""
    kept, length = list(drawn), 0
    while True:
        length += every
        scores = [value(response[:length]) for response in kept]
        spreads = [0.0 if len(y) <= length else deviation(min(length, 3)) for y in kept]
        chances = win_chances(scores, spreads)
        favourite = chances.index(max(chances))
        if chances[favourite] > 1 - delta:
            kept = [kept[favourite]]
        else:
            kept = [kept[i] for i, p in enumerate(chances) if p >= delta or not spreads[i]]
        if all(len(response) <= length for response in kept):
            return max(kept, key=value)


class TestPolicy:
    @pytest.mark.parametrize(
        "fields",
        [
            {"kl_budget": 0.2},
            {"kl_budget": 9.0, "proposal": {"method": "tokenwise_cd", "beta": 1.0}},
            {"threshold": {"score": 0.0, "on_reject": "refuse"}},
            {"selection": {"softmax": 1.0}},
        ],
    )
    def test_fields_of_other_searches_are_refused(self, fields: dict[str, Any]) -> None:
        with pytest.raises(PolicyError) as error:
            policy(**fields).check_limits(Limits())
        assert error.value.param == "alignment.race"

    @pytest.mark.parametrize("delta", [0.4, 1 / 3])
    def test_delta_of_equal_chances_or_more_is_refused(self, delta: float) -> None:
        with pytest.raises(PolicyError, match=r"must be below 1 / n = 0\.333") as error:
            policy(race={"delta": delta}).check_limits(Limits())
        assert error.value.param == "alignment.race.delta"

    def test_budget_of_the_bound_of_n_is_accepted(self) -> None:
        policy(kl_budget=kl.best_of_n_bound(3)).check_limits(Limits())

    def test_race_compares_prefixes_by_figures_of_the_head(self) -> None:
        assert policy().compares_prefixes
        assert policy().outlook_field == "race"
        assert not policy(race=None).compares_prefixes
