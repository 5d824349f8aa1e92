"""Selection rules: the choice's distribution, its limits, and the KL it is charged with."""

import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdserve import kl
from cdserve.decoders import Argmax, BestOfNPolicy, SelectionRule, Softmax
from cdserve.decoders.selection import Pessimistic, pessimistic_level, rule
from cdserve.policy import PessimisticSelection, SoftmaxSelection

from .toy import At

SCORES = st.lists(st.floats(-100, 100), min_size=1, max_size=12)
TEMPERATURES = st.floats(1e-3, 1e3)
LOGPROBS = st.floats(-200, -1e-6)
reproducible = settings(derandomize=True, deadline=None, max_examples=100)


def choice_law(temperature: float, scores: list[float]) -> list[float]:
    """P(index taken), from where the choice jumps as the uniform number grows from 0 to 1."""

    inner = [_share_of_first(i, scores, temperature) for i in range(1, len(scores))]
    jumps = [0.0, *inner, 1.0]
    return [high - low for low, high in pairwise(jumps)]


def _jump(after: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (low, middle) if after(middle) else (middle, high)
    return high


class TestArgmax:
    @pytest.mark.parametrize(
        ("scores", "chosen"), [([1.0], 0), ([0, 2, 1], 1), ([1, 3, 3, 2], 1), ([-1, -1], 0)]
    )
    def test_argmax_chooses_the_first_of_the_highest_scores(
        self, scores: list[float], chosen: int
    ) -> None:
        assert Argmax().choose(scores) == chosen

    @reproducible
    @given(st.lists(st.integers(-50, 50), min_size=1), st.integers(-1000, 1000))
    def test_argmax_is_invariant_to_a_constant(self, scores: list[int], constant: int) -> None:
        moved = [score + constant for score in scores]
        assert Argmax().choose(moved) == Argmax().choose(scores)

    def test_argmax_estimate_without_logprob_is_the_bound(self) -> None:
        assert Argmax().kl_estimate([1, 2, 3], None) == Argmax().kl_bound(3)
        assert Argmax().kl_estimator(None) == "bound"

    def test_argmax_estimate_with_logprob_is_epsilon_n(self) -> None:
        assert Argmax().kl_estimate([0.0] * 16, -5) == pytest.approx(1.835044802, abs=1e-9)
        assert Argmax().kl_estimator(-5) == "epsilon_n"


class TestSoftmax:
    @reproducible
    @given(st.lists(st.floats(-5, 5), min_size=2, max_size=5), st.floats(0.2, 5))
    def test_softmax_sampled_choices_follow_its_weights(
        self, scores: list[float], temperature: float
    ) -> None:
        weights = [math.exp(score / temperature) for score in scores]
        expected = [weight / sum(weights) for weight in weights]
        assert choice_law(temperature, scores) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize(("n", "p"), [(2, 0.61552929), (8, 0.70645880), (64, 0.72819068)])
    def test_softmax_matches_published_values_for_a_binary_reward(self, n: int, p: float) -> None:
        assert _served_with_reward_1(n, 1.0) == pytest.approx(p, abs=5e-9)

    @pytest.mark.parametrize("n", [1, 2, 3, 8])
    def test_softmax_distribution_tends_to_best_of_n_at_zero_temperature(self, n: int) -> None:
        assert _served_with_reward_1(n, 1e-3) == pytest.approx(1 - 2**-n, abs=1e-12)

    @pytest.mark.parametrize("n", [1, 2, 3, 8])
    def test_softmax_distribution_tends_to_the_proposal_at_infinite_temperature(
        self, n: int
    ) -> None:
        assert _served_with_reward_1(n, 1e12) == pytest.approx(0.5, abs=1e-9)

    @reproducible
    @given(st.lists(st.integers(-9, 9), min_size=1, unique=True), st.floats(0, 1, exclude_max=True))
    def test_softmax_choice_tends_to_argmax_at_zero_temperature(
        self, scores: list[int], u: float
    ) -> None:
        assert Softmax(1e-9, At(u)).choose(scores) == Argmax().choose(scores)

    @pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
    def test_softmax_is_finite_at_extreme_temperatures(self, temperature: float) -> None:
        rule = Softmax(temperature, random.Random(0))
        assert rule.choose([-1e300, 0.0, 1e300]) in range(3)
        assert math.isfinite(rule.kl_estimate([-1e300, 0.0, 1e300], None))

    def test_softmax_is_invariant_to_a_constant(self) -> None:
        scores = [0.5, -1.25, 3.0, 0.0]
        moved = [score + 1024 for score in scores]
        assert choice_law(0.7, moved) == choice_law(0.7, scores)

    @pytest.mark.parametrize("n", [2, 4, 8])
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_softmax_mean_estimate_is_above_the_kl_at_moderate_temperatures(
        self, n: int, temperature: float
    ) -> None:
        p = _served_with_reward_1(n, temperature)
        exact = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
        assert exact <= _mean_estimate(n, temperature) <= kl.best_of_n_bound(n)

    def test_softmax_estimate_of_equal_scores_is_zero(self) -> None:
        rule = Softmax(1.0, random.Random(0))
        assert rule.kl_estimate([2.0] * 7, -5) == pytest.approx(0, abs=1e-12)
        assert rule.kl_estimator(-5) == "selection_entropy"


class TestEstimates:
    @reproducible
    @given(SCORES, LOGPROBS, TEMPERATURES)
    def test_kl_estimates_are_between_zero_and_the_bound(
        self, scores: list[float], logprob: float, temperature: float
    ) -> None:
        rules: list[SelectionRule] = [Argmax(), Softmax(temperature, random.Random(0))]
        for selection in rules:
            estimate = selection.kl_estimate(scores, logprob)
            assert -1e-12 <= estimate <= selection.kl_bound(len(scores)) + 1e-12

    @pytest.mark.parametrize("selection", [Argmax(), Softmax(1.0, random.Random(0))])
    def test_kl_of_one_candidate_is_zero(self, selection: SelectionRule) -> None:
        assert selection.kl_bound(1) == 0
        assert selection.kl_estimate([0.3], -4.0) == 0


def softmax_rule(temperature: float, seed: int | None) -> SelectionRule:
    selection = SoftmaxSelection(softmax=temperature)
    return rule(BestOfNPolicy(method="best_of_n", n=2, selection=selection), seed)


class TestPessimistic:
    @pytest.mark.parametrize(
        ("beta", "level", "weights"),
        [
            (0.25, 1.0, [0, 0, 0, 4]),
            (1.0, -0.25, [0.25, 0.25, 1.25, 2.25]),
            (4.0, -3.25, [0.8125, 0.8125, 1.0625, 1.3125]),
        ],
    )
    def test_pessimistic_level_and_weights_match_published_values(
        self, beta: float, level: float, weights: list[float]
    ) -> None:
        scores = [0.0, 0.0, 1.0, 2.0]
        assert pessimistic_level(scores, beta) == pytest.approx(level, abs=1e-12)
        made = Pessimistic(beta, random.Random(0)).weights(scores)
        assert [4 * share for share in made] == pytest.approx(weights, abs=1e-12)

    @reproducible
    @given(SCORES, st.floats(1e-3, 1e3))
    def test_pessimistic_mean_weight_is_one(self, scores: list[float], beta: float) -> None:
        level = pessimistic_level(scores, beta)
        mean = math.fsum(max(0.0, (score - level) / beta) for score in scores) / len(scores)
        assert mean == pytest.approx(1.0, rel=1e-6)

    def test_pessimistic_limits_are_best_of_n_and_the_proposal(self) -> None:
        scores = [0.0, 2.0, 1.0]
        assert Pessimistic(1e-6, random.Random(0)).weights(scores) == [0, 1, 0]
        even = Pessimistic(1e9, random.Random(0)).weights(scores)
        assert even == pytest.approx([1 / 3] * 3, abs=1e-6)

    def test_pessimistic_selection_gives_the_pessimistic_rule(self) -> None:
        selection = PessimisticSelection(pessimistic=0.25)
        made = rule(BestOfNPolicy(method="best_of_n", n=4, selection=selection), 1)
        assert made.choose([0.0, 0.0, 1.0, 2.0]) == 3
        assert made.kl_estimator(None) == "selection_entropy"


class TestRule:
    def test_default_selection_gives_argmax(self) -> None:
        assert isinstance(rule(BestOfNPolicy(method="best_of_n", n=2), 3), Argmax)

    def test_softmax_selection_uses_its_temperature(self) -> None:
        scores = [0.0, 1.0]
        chosen = sum(softmax_rule(0.5, i).choose(scores) for i in range(2000))
        assert chosen / 2000 == pytest.approx(1 / (1 + math.exp(-2)), abs=0.03)

    def test_seed_reproduces_every_choice(self) -> None:
        def choices(seed: int) -> list[int]:
            selection = softmax_rule(1.0, seed)
            return [selection.choose([0.0, 0.5, 1.0]) for _ in range(50)]

        assert choices(1) == choices(1)
        assert choices(1) != choices(2)

    def test_choices_without_a_seed_differ(self) -> None:
        runs = [
            [selection.choose([0.0] * 10) for _ in range(50)]
            for selection in (softmax_rule(1.0, None) for _ in range(2))
        ]
        assert runs[0] != runs[1]


def _served_with_reward_1(n: int, temperature: float) -> float:
    """P(reward 1 is taken) of n draws with reward 0 or 1, each with probability a half."""
    return sum(
        math.comb(n, ones)
        / 2**n
        * _share_of_first(ones, [1.0] * ones + [0.0] * (n - ones), temperature)
        for ones in range(1, n + 1)
    )


def _share_of_first(count: int, scores: list[float], temperature: float) -> float:
    """P(one of the first ``count`` is taken)."""
    return _jump(lambda u: Softmax(temperature, At(u)).choose(scores) >= count)


def _mean_estimate(n: int, temperature: float) -> float:
    selection = Softmax(temperature, random.Random(0))
    return sum(
        math.comb(n, ones) / 2**n * selection.kl_estimate(_scores(ones, n), None)
        for ones in range(n + 1)
    )


def _scores(ones: int, n: int) -> list[float]:
    return [1.0] * ones + [0.0] * (n - ones)
