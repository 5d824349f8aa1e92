"""Race: the chances of candidates, which are given up, and the distribution of the response."""

import math
from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdserve import kl
from cdserve.decoders import BestOfN, BestOfNPolicy, Candidate, Outlook, Prefix
from cdserve.decoders.race import Race, win_chances
from cdserve.errors import PolicyError

from .toy import RESPONSES, Limits, Tokens, Toy, probability, replay, value

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


class TestChances:
    @pytest.mark.parametrize(("score", "spread"), [(0.0, 1.0), (0.7, 0.5), (3.0, 1.5)])
    def test_two_unfinished_candidates_have_the_closed_form(
        self, score: float, spread: float
    ) -> None:
        chances = win_chances([0.2, 0.2 + score], [False, False], spread)
        ahead = normal_below(score / spread / math.sqrt(2.0))
        assert chances == pytest.approx([1.0 - ahead, ahead], abs=1e-6)

    @pytest.mark.parametrize("score", [-2.0, -0.3, 0.0, 1.1])
    def test_an_ended_candidate_wins_if_all_others_end_below(self, score: float) -> None:
        chances = win_chances([0.5, 0.1, score], [True, False, False], 0.8)
        below = normal_below(0.4 / 0.8) * normal_below((0.5 - score) / 0.8)
        assert chances[0] == pytest.approx(below, abs=1e-5)

    def test_chances_equal_integration_over_all_final_scores(self) -> None:
        scores, spread = [0.0, 0.4, -0.3], 0.5
        x = np.linspace(-4, 4, 161)
        density = [np.exp(-(((x - s) / spread) ** 2) / 2) for s in scores]
        joint = math.prod(np.ix_(*density))
        final = np.stack(np.meshgrid(x, x, x, indexing="ij"))
        highest = final == final.max(0)
        shares = highest / highest.sum(0)  # equal numbers of the grid share the win
        expected = [(joint * share).sum() / joint.sum() for share in shares]
        assert win_chances(scores, [False] * 3, spread) == pytest.approx(expected, abs=1e-3)

    @given(SCORES, st.floats(0.01, 10), st.data())
    def test_chances_sum_to_one_in_the_order_of_unfinished_scores(
        self, scores: Sequence[float], spread: float, data: st.DataObject
    ) -> None:
        size = {"min_size": len(scores), "max_size": len(scores)}
        ended = data.draw(st.lists(st.booleans(), **size))
        chances = win_chances(scores, ended, spread)
        assert math.isclose(sum(chances), 1.0, abs_tol=1e-9)
        assert min(chances) >= 0.0
        running = sorted(
            (s, c) for s, c, end in zip(scores, chances, ended, strict=True) if not end
        )
        assert all(low[1] <= high[1] + 1e-9 for low, high in pairwise(running))

    def test_the_first_of_equal_final_scores_wins(self) -> None:
        assert win_chances([1.0, 2.0, 2.0], [True] * 3, 0.0) == [0.0, 1.0, 0.0]


class TestKept:
    @staticmethod
    def prefixes(*lengths: int | None) -> list[Prefix]:
        """Prefixes of these lengths; None for one that has ended."""
        return [
            (Candidate(token_ids=(0,) * (n or 2), finish_reason="stop" if n is None else None),)
            for n in lengths
        ]

    def test_hopeless_candidates_are_given_up(self) -> None:
        race = Race(0.05, lambda _: 0.2)
        assert race.keep([0.0, 1.0, 0.9], self.prefixes(4, 4, 4)) == [1, 2]

    def test_sure_favourite_is_kept_alone(self) -> None:
        race = Race(0.2, lambda _: 0.2)
        assert race.keep([0.5, 1.0, 0.6], self.prefixes(4, 4, 4)) == [1]

    def test_favourite_is_kept_even_below_delta(self) -> None:
        race = Race(0.4, lambda _: 1.0)
        assert race.keep([0.0, 0.1, 0.0], self.prefixes(4, 4, 4)) == [1]

    def test_ended_candidate_stays_until_others_cannot_pass_it(self) -> None:
        race = Race(0.05, lambda _: 0.5)
        assert race.keep([0.5, 0.4], self.prefixes(None, 4)) == [0, 1]
        assert race.keep([0.5, -1.0], self.prefixes(None, 4)) == [0]

    def test_deviation_is_read_at_the_length_of_the_unfinished(self) -> None:
        race = Race(0.05, {7: 0.5}.__getitem__)
        assert race.keep([0.0, 0.0], self.prefixes(None, 7)) == [0, 1]


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


def reference(n: int, delta: float, every: int) -> dict[Tokens, float]:
    """The distribution, from every way in which n whole responses can fall."""
    found = dict.fromkeys(RESPONSES, 0.0)
    for drawn in product(RESPONSES, repeat=n):
        found[returned(drawn, delta, every)] += math.prod(map(probability, drawn))
    return {response: p for response, p in found.items() if p > 0}


def returned(drawn: tuple[Tokens, ...], delta: float, every: int) -> Tokens:
    kept, length = list(drawn), 0
    while True:
        kept.sort(key=lambda response: len(response) > length)  # what has ended, first
        length += every
        ended = [len(response) <= length for response in kept]
        scores = [value(response[:length]) for response in kept]
        chances = win_chances(scores, ended, 0.0 if all(ended) else deviation(min(length, 3)))
        favourite = chances.index(max(chances))
        if chances[favourite] > 1 - delta:
            kept = [kept[favourite]]
        else:
            order = sorted(range(len(kept)), key=scores.__getitem__, reverse=True)
            kept = [kept[i] for i in order if chances[i] >= delta or i == favourite]
        if all(len(response) <= length for response in kept):
            return kept[0]


class TestPolicy:
    @pytest.mark.parametrize(
        "fields",
        [
            {"stop": {"threshold": 1.0}},
            {"at_once": 2},
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
