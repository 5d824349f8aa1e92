"""Worst-case selection: weights, distribution on ab3 with two objectives, identities."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdserve import kl
from cdserve.decoders import (
    Argmax,
    BestOfN,
    BestOfNPolicy,
    BlockwiseCD,
    BlockwiseCDPolicy,
    Prefix,
    Score,
    WorstCase,
)
from cdserve.decoders.selection import rule, worst_weights
from cdserve.policy import SelectingPolicy

from .toy import (
    RESPONSES,
    A,
    E,
    Tokens,
    Toy,
    blocks,
    collect,
    ended,
    probability,
    replay,
    sampler,
    value,
)

reproducible = settings(derandomize=True, deadline=None, max_examples=60)
TABLES = st.lists(st.lists(st.floats(-3, 3), min_size=2, max_size=2), min_size=1, max_size=6).map(
    np.array
)


def worst(strength: float = 2.0) -> dict[str, object]:
    return {"worst_case": {"lambda": strength}}


def other(tokens: Tokens) -> float:
    """Another objective, against a's and for length; no two candidates tie at the worst w."""
    return -1.37 * tokens.count(A) + 0.253 * len(tokens) + 0.0711 * tokens.count(E)


class Two(Toy):
    """ab3 with two objectives, each scoring prefixes."""

    async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        tokens = map(self.tokens, prefixes)
        return [scored({"b": 2 * value(one), "other": other(one)}) for one in tokens]


def scored(parts: dict[str, float], failed: tuple[str, ...] = ()) -> Score:
    return Score(sum(parts.values()), parts, failed, parts)


def soft_maximum(values: np.ndarray, w: float, strength: float) -> float:
    """The objective of the worst case, with weights (w, 1 - w)."""
    exponents = strength * (values @ np.array([w, 1 - w]))
    return float(np.logaddexp.reduce(exponents)) / strength


def lowest(values: np.ndarray, strength: float) -> float:
    """Its minimum over w, by thirds: it is convex."""
    low, high = 0.0, 1.0
    for _ in range(200):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if soft_maximum(values, left, strength) < soft_maximum(values, right, strength):
            high = right
        else:
            low = left
    return (low + high) / 2


class TestWeights:
    @reproducible
    @given(TABLES, st.sampled_from([0.1, 1.0, 5.0]))
    def test_worst_weights_of_two_objectives_are_minimal(
        self, values: np.ndarray, strength: float
    ) -> None:
        w = worst_weights(values, strength)
        assert w.sum() == pytest.approx(1)
        assert (w >= 0).all()
        least = soft_maximum(values, lowest(values, strength), strength)
        found = soft_maximum(values, w[0], strength)
        assert found == pytest.approx(least, abs=1e-5 * max(1.0, float(np.ptp(values))))

    @pytest.mark.parametrize("strength", [0.5, 5.0])
    @pytest.mark.parametrize("objectives", [3, 10])
    def test_no_weights_are_worse_than_worst_weights(
        self, objectives: int, strength: float
    ) -> None:
        rng = np.random.default_rng(objectives)
        values = rng.normal(size=(8, objectives))

        def height(w: np.ndarray) -> float:
            return float(np.logaddexp.reduce(strength * (values @ w))) / strength

        least = height(worst_weights(values, strength))
        for w in rng.dirichlet(np.full(objectives, 0.5), size=2000):
            assert height(w) > least - 1e-4

    def test_objective_that_is_always_worst_has_all_the_weight(self) -> None:
        values = np.array([[1.0, 5.0], [2.0, 7.0], [0.5, 6.0]])
        assert worst_weights(values, 1.0) == pytest.approx([1.0, 0.0], abs=1e-5)

    def test_worst_weights_of_identical_objectives_sum_to_one(self) -> None:
        values = np.repeat(np.array([[0.3], [1.2], [-1.0]]), 3, axis=1)
        assert worst_weights(values, 2.0).sum() == pytest.approx(1)

    @pytest.mark.parametrize("scale", [0.0, 1e-300, 1e6, 1e12])
    def test_worst_weights_are_finite_at_extreme_strengths(self, scale: float) -> None:
        values = scale * np.array([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.0]])
        for strength in (1e-300, 1.0, 1e6):
            w = worst_weights(values, strength)
            assert np.isfinite(w).all()
            assert w.sum() == pytest.approx(1)


class TestDistribution:
    @pytest.mark.parametrize("m", [1, 2, None])
    def test_worst_case_search_has_the_enumerated_distribution(self, m: int | None) -> None:
        sent = {"rewards": {"b": 2.0, "other": 1.0}, "selection": worst()}
        if m is None:
            one = BestOfNPolicy.model_validate({"method": "best_of_n", "n": 2, **sent})
            served = replay(lambda toy: BestOfN.run(one, toy, None), Two)
        else:
            block = {"method": "blockwise_cd", "k": 2, "m": m, **sent}
            several = BlockwiseCDPolicy.model_validate(block)
            served = replay(lambda toy: BlockwiseCD.run(several, toy, None), Two)
        assert served.responses == pytest.approx(_enumerated(m), abs=1e-12)
        assert served.kl < served.kl_estimate == served.kl_bound

    async def test_worst_case_kl_estimate_is_the_bound(self) -> None:
        (made,) = await collect(
            BestOfN.run(_best_of(rewards={"b": 1.0, "other": 1.0}), Two(sampler(1)), None)
        )
        assert made.kl_estimate == made.kl_bound == kl.best_of_n_bound(4)
        assert made.kl_estimator == "bound"


class TestIdentities:
    @pytest.mark.parametrize("rewards", [None, {"b": 2.0}, {"b": -1.0, "other": 0.0}])
    async def test_worst_case_of_one_objective_is_argmax(self, rewards: object) -> None:
        selection = rule(_best_of(rewards=rewards), None)
        assert type(selection) is Argmax

    @reproducible
    @given(st.lists(st.integers(-9, 9), min_size=1, max_size=8))
    def test_worst_case_of_identical_objectives_chooses_as_argmax(self, values: list[int]) -> None:
        selection = WorstCase(1.0)
        scores = [scored(dict.fromkeys("abc", float(v))) for v in values]
        chosen = selection.choose(selection.rank(scores))
        assert values[chosen] == max(values)

    def test_worst_case_chooses_by_the_worst_objective(self) -> None:
        selection = WorstCase(5.0)
        even = [scored({"a": 1.0, "b": 0.0}), scored({"a": 0.0, "b": 1.0})]
        assert selection.rank(even) == pytest.approx([0.5, 0.5])
        for weight, chosen in ((9.0, 0), (1 / 9, 1)):
            scores = [scored({"a": 1.0, "b": 0.0}), scored({"a": 0.0, "b": weight})]
            assert selection.choose(selection.rank(scores)) == chosen

    def test_worst_case_uses_weighted_sums_after_a_reward_failed(self) -> None:
        scores = [scored({"a": total}, ("b",)) for total in (1.0, 2.0)]
        assert WorstCase(1.0).rank(scores) == [1.0, 2.0]


def _best_of(**fields: object) -> SelectingPolicy:
    sent = {"method": "best_of_n", "n": 4, "selection": worst(), **fields}
    return BestOfNPolicy.model_validate(sent)


def _enumerated(m: int | None) -> dict[Tokens, float]:
    """Every decision between every two blocks, w found by thirds."""
    responses: dict[Tokens, float] = dict.fromkeys(RESPONSES, 0.0)

    def go(prefix: Tokens, mass: float) -> None:
        if ended(prefix):
            responses[prefix] += mass
            return
        options = blocks(prefix, m)
        for first in options:
            for second in options:
                two = [prefix + first, prefix + second]
                values = np.array([[2 * value(s), other(s)] for s in two])
                w = lowest(values, 2.0)
                ranks = values @ np.array([w, 1 - w])
                taken = two[1] if ranks[1] > ranks[0] + 1e-4 else two[0]
                go(taken, mass * probability(first) * probability(second))

    go((), 1.0)
    return {y: p for y, p in responses.items() if p > 0}
