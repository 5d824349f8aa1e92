"""The search's distribution equals the enumerated one, exactly and when sampled."""

import math
import random
from collections import Counter
from itertools import combinations_with_replacement, product

import pytest

from cdserve import kl
from cdserve.decoders import Argmax, Softmax, search

from .toy import (
    RESPONSES,
    A,
    B,
    Distribution,
    E,
    Tokens,
    Toy,
    assert_follows,
    blocks,
    blockwise,
    finish,
    first,
    probability,
    replay,
    reward,
    sampler,
    value,
)


class TestToy:
    """The toy is the one of the published values."""

    def test_toy_model_probabilities_sum_to_one(self) -> None:
        assert len(RESPONSES) == 15
        assert sum(map(probability, RESPONSES)) == pytest.approx(1, abs=1e-15)

    @pytest.mark.parametrize(("prefix", "v"), [((), 0.732), ((A,), 0.54), ((A, B), 1.3), ((E,), 0)])
    def test_toy_values_match_the_recursion(self, prefix: Tokens, v: float) -> None:
        assert value(prefix) == pytest.approx(v, abs=1e-15)

    @pytest.mark.parametrize("prefix", [(), (A,), (B,), (A, A), (A, B), (B, A), (B, B)])
    def test_toy_value_is_the_expected_reward(self, prefix: Tokens) -> None:
        rests = blocks(prefix, None)
        expected = sum(probability(rest) * reward(prefix + rest) for rest in rests)
        assert value(prefix) == pytest.approx(expected, abs=1e-15)


class TestExactDistribution:
    """Every decision that the search makes, weighed with the probability of its draws."""

    @pytest.mark.parametrize(
        ("m", "k", "reward", "kl", "decisions", "bound", "win"),
        [
            (1, 2, 1.469616, 0.39964316, 2.8816, 0.556573, 0.71802965),
            (1, 4, 2.27605443, 1.49103376, 2.995203, 1.905830, 0.89295003),
            (2, 2, 1.298004, 0.25015824, 1.8404, 0.355468, 0.67650950),
            (2, 4, 1.940810, 1.01423930, 1.944948, 1.237559, 0.83926441),
            (3, 2, 1.155246, 0.14391033, 1, 0.193147, 0.64136054),
            (None, 2, 1.155246, 0.14391033, 1, 0.193147, 0.64136054),
            (None, 4, 1.6006758, 0.55982037, 1, 0.636294, 0.77238334),
        ],
    )
    def test_exact_distribution_matches_published_values(
        self,
        m: int | None,
        k: int,
        reward: float,
        kl: float,
        decisions: float,
        bound: float,
        win: float,
    ) -> None:
        served = blockwise(k, m)
        assert sum(served.responses.values()) == pytest.approx(1, abs=1e-11)
        assert served.reward == pytest.approx(reward, abs=5e-7)
        assert served.kl == pytest.approx(kl, abs=5e-9)
        assert served.decisions == pytest.approx(decisions, abs=5e-7)
        assert served.kl_bound == pytest.approx(bound, abs=6e-7)
        assert served.win_rate == pytest.approx(win, abs=5e-9)

    @pytest.mark.parametrize(("k", "m"), [(2, 1), (4, 1), (2, 2), (4, 2), (2, 3), (4, None)])
    def test_exact_kl_is_below_estimate_and_bound(self, k: int, m: int | None) -> None:
        served = blockwise(k, m)
        assert served.kl < served.kl_estimate < served.kl_bound

    def test_kl_estimates_by_response_and_by_reward_level_match_published_values(self) -> None:
        served = blockwise(4, None)
        by_level = sum(
            p * kl.best_of_n_estimate(math.log(_level_probability(reward(y))), 4)
            for y, p in served.responses.items()
        )
        assert served.kl_estimate == pytest.approx(0.6358, abs=5e-5)
        assert by_level == pytest.approx(0.6077, abs=5e-5)

    def test_best_of_8_matches_published_values(self) -> None:
        served = _best_of_n_by_level(8)
        assert served.reward == pytest.approx(1.98964827, abs=5e-9)
        assert served.kl == pytest.approx(1.08613351, abs=5e-9)
        assert served.win_rate == pytest.approx(0.86223723, abs=5e-9)

    def test_kl_by_reward_level_equals_kl_by_response(self) -> None:
        assert _best_of_n_by_level(4).responses == pytest.approx(
            blockwise(4, None).responses, abs=1e-12
        )

    @pytest.mark.parametrize("k", [2, 3])
    def test_block_as_long_as_the_response_gives_best_of_k(self, k: int) -> None:
        assert blockwise(k, 3) == blockwise(k, 4) == blockwise(k, None)

    @pytest.mark.parametrize("m", [1, 2, 3, None])
    def test_one_candidate_gives_the_proposal(self, m: int | None) -> None:
        served = blockwise(1, m)
        assert served.responses == pytest.approx({y: probability(y) for y in RESPONSES}, abs=1e-15)
        assert served.kl_bound == served.kl_estimate == 0

    @pytest.mark.parametrize("m", [1, 2, 3])
    def test_search_has_the_distribution_of_its_decisions(self, m: int) -> None:
        replayed = replay(lambda toy: search(toy, k=2, m=m, select=Argmax()))
        assert replayed.responses == pytest.approx(blockwise(2, m).responses, abs=1e-14)
        assert replayed.decisions == pytest.approx(blockwise(2, m).decisions, abs=1e-13)


class TestSampledDistribution:
    """Chi-square of the seeded search against the enumerated distribution."""

    @pytest.mark.parametrize(("k", "m"), [(1, 2), (2, 1), (4, 1), (2, 2), (4, 2), (4, None)])
    def test_sampled_argmax_follows_the_exact_distribution(self, k: int, m: int | None) -> None:
        draw = sampler(seed=k)
        served = (search(Toy(draw), k=k, m=m, select=Argmax()) for _ in range(3000))
        assert_follows(served, blockwise(k, m).responses)

    @pytest.mark.parametrize("temperature", [0.2, 1.0])
    def test_sampled_softmax_follows_the_exact_distribution(self, temperature: float) -> None:
        draw, select = sampler(seed=1), Softmax(temperature, random.Random(2))
        served = (search(Toy(draw), k=2, m=None, select=select) for _ in range(3000))
        assert_follows(served, _soft_best_of_2(temperature))

    def test_chi_square_check_detects_a_wrong_distribution(self) -> None:
        draw = sampler(seed=1)
        served = (search(Toy(draw), k=2, m=2, select=Argmax()) for _ in range(3000))
        with pytest.raises(AssertionError):
            assert_follows(served, blockwise(2, 1).responses)


def _best_of_n_by_level(n: int) -> Distribution:
    """Distribution of best-of-n from every multiset of reward levels: the rule sees scores only."""
    levels = {0: (E,), 1: (B, E), 2: (B, B, E), 3: (B, B, B)}
    chosen: Counter[float] = Counter()
    for drawn in combinations_with_replacement(levels, n):
        decision = finish(first((), [levels[level] for level in drawn], None))
        counts = Counter(drawn)
        orders = math.factorial(n) // math.prod(map(math.factorial, counts.values()))
        chosen[decision.score.total] += orders * math.prod(map(_level_probability, drawn))
    return Distribution(
        {y: chosen[reward(y)] * probability(y) / _level_probability(reward(y)) for y in RESPONSES}
    )


def _level_probability(level: float) -> float:
    return sum(probability(y) for y in RESPONSES if reward(y) == level)


def _soft_best_of_2(temperature: float) -> dict[Tokens, float]:
    expected: Counter[Tokens] = Counter()
    for y, z in product(RESPONSES, repeat=2):
        share = 1 / (1 + math.exp((reward(z) - reward(y)) / temperature))
        expected[y] += probability(y) * probability(z) * share
        expected[z] += probability(y) * probability(z) * (1 - share)
    return dict(expected)
