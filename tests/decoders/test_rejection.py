"""Rejection sampling: the exact distribution on ab3, the case of no acceptance, and the KL."""

import math
import statistics
from itertools import product
from typing import Any

import pytest

from cdserve import kl
from cdserve.decoders import Decision, Rejection, RejectionPolicy
from cdserve.decoders.rejection import BATCH, ExactRejection
from cdserve.errors import PolicyError
from cdserve.report import merged, report

from .toy import (
    LENGTH,
    RESPONSES,
    A,
    At,
    B,
    Distribution,
    Draws,
    E,
    Limits,
    Tokens,
    Toy,
    assert_follows,
    collect,
    finish,
    probability,
    reward,
    sampler,
)

R_MAX = float(LENGTH)


def policy(**fields: Any) -> RejectionPolicy:
    sent = {"method": "rejection", "eta": 1.0, "r_max": R_MAX, "max_draws": 256, **fields}
    return RejectionPolicy.model_validate(sent)


def tilted(eta: float = 1.0) -> Distribution:
    """p exp(r / eta) / Z."""
    weights = {y: probability(y) * math.exp(reward(y) / eta) for y in RESPONSES}
    total = sum(weights.values())
    return Distribution({y: weight / total for y, weight in weights.items()})


def run(count: int, **fields: Any) -> list[Decision]:
    draw = sampler(seed=3)
    return [finish(collect(Rejection.run(policy(**fields), Toy(draw), i)))[0] for i in range(count)]


def acceptance(score: float, eta: float = 1.0) -> float:
    """P(accepted), from where the choice jumps as the uniform number grows."""
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        taken = ExactRejection(eta, R_MAX, 2, At(middle)).choose([score]) is not None
        low, high = (low, middle) if taken else (middle, high)
    return 1 - low


class TestDistribution:
    def test_exact_distribution_matches_published_values(self) -> None:
        rates = {y: probability(y) * acceptance(reward(y)) for y in RESPONSES}
        rate = sum(rates.values())
        assert rate == pytest.approx(0.153625, abs=5e-7)
        assert 1 / rate == pytest.approx(6.5094, abs=5e-5)
        accepted = {y: one / rate for y, one in rates.items()}
        assert accepted == pytest.approx(tilted().responses, abs=1e-14)

    @pytest.mark.parametrize("eta", [0.5, 1.0, 3.0])
    def test_sampled_responses_follow_the_exact_distribution(self, eta: float) -> None:
        draw = sampler(seed=1)
        served = (Rejection.run(policy(eta=eta), Toy(draw), i) for i in range(3000))
        assert_follows(served, tilted(eta).responses)

    def test_higher_r_max_changes_only_the_number_of_draws(self) -> None:
        draw = sampler(seed=1)
        served = (Rejection.run(policy(r_max=4.0), Toy(draw), i) for i in range(2000))
        assert_follows(served, tilted().responses)

    def test_mean_number_of_draws_is_the_inverse_acceptance_rate(self) -> None:
        draws = [decision.chosen + 1 for decision in run(4000)]
        assert statistics.mean(draws) == pytest.approx(6.5094, abs=0.35)

    def test_reward_of_r_max_is_always_accepted(self) -> None:
        assert acceptance(R_MAX) == 1


class TestDraws:
    async def test_batches_are_drawn_until_a_response_is_accepted(self) -> None:
        seen: list[int] = []
        rest = [(E,)] * BATCH + [(A, E)] * BATCH + [(B, B, B)] * BATCH

        def draw(prefix: Tokens, count: int, m: int | None) -> Draws:
            assert prefix == ()
            assert m is None
            drawn = rest[sum(seen) :][:count]
            seen.append(count)
            return drawn

        (made,) = await collect(Rejection.run(policy(eta=1e-3), Toy(draw), 0))
        assert seen == [BATCH] * 3
        assert made.chosen == 2 * BATCH
        assert len(made.candidates) == len(made.scores) == 3 * BATCH
        assert made.accepted is True

    async def test_best_response_is_returned_and_reported_if_none_is_accepted(self) -> None:
        draws = [*[(E,)] * BATCH, (B, E), (A, E), (B, A, E)]
        rest = iter(draws)
        proposal = Toy(lambda prefix, count, m: [next(rest) for _ in range(count)])
        (made,) = await collect(Rejection.run(policy(eta=1e-3, max_draws=11), proposal, 0))
        assert (made.chosen, made.accepted) == (BATCH, False)
        assert len(made.candidates) == 11
        assert made.kl_estimate == made.kl_bound == kl.best_of_n_bound(11)
        assert made.kl_estimator == "bound"

    async def test_seed_reproduces_the_chosen_response(self) -> None:
        async def chosen(seed: int) -> list[int]:
            runs = [Rejection.run(policy(), Toy(sampler(i)), seed) for i in range(30)]
            return [(await collect(run))[0].chosen for run in runs]

        assert await chosen(1) == await chosen(1) != await chosen(2)

    async def test_reward_above_r_max_is_accepted_and_the_law_not_exact(self) -> None:
        proposal = Toy(lambda prefix, count, m: [(B, B, B)] * count)
        (made,) = await collect(Rejection.run(policy(r_max=2.5), proposal, 0))
        assert (made.accepted, made.exact) == (True, False)

    def test_reward_above_r_max_by_rounding_is_exact(self) -> None:
        rule = ExactRejection(1.0, 0.3, 2, At(0.0))
        assert rule.choose([0.1 + 0.2]) == 0
        assert rule.exact()

    async def test_exact_is_false_if_no_response_was_accepted(self) -> None:
        proposal = Toy(lambda prefix, count, m: [(E,)] * count)
        (best,) = await collect(Rejection.run(policy(eta=1e-3, max_draws=2), proposal, 0))
        assert (best.accepted, best.exact) == (False, False)


class TestEmpiricalBound:
    async def test_all_max_draws_are_drawn_at_once(self) -> None:
        seen: list[int] = []

        def draw(prefix: Tokens, count: int, m: int | None) -> Draws:
            seen.append(count)
            return [(E,)] * count

        (made,) = await collect(
            Rejection.run(policy(r_max="empirical", max_draws=20), Toy(draw), 0)
        )
        assert seen == [20]
        assert (made.accepted, made.exact) == (True, False)
        assert made.kl_bound == kl.best_of_n_bound(20)

    def test_distribution_of_two_draws_is_that_of_the_rule(self) -> None:
        """The first of two is kept with probability exp((r_1 - max) / eta), else the second."""
        expected = dict.fromkeys(RESPONSES, 0.0)
        for first, second in product(RESPONSES, repeat=2):
            p = probability(first) * probability(second)
            kept = math.exp(min(0.0, reward(first) - reward(second)))
            expected[first] += p * kept
            expected[second] += p * (1 - kept)
        draw = sampler(seed=5)
        asked = policy(r_max="empirical", max_draws=2)
        assert_follows((Rejection.run(asked, Toy(draw), i) for i in range(3000)), expected)

    def test_many_draws_follow_the_exact_distribution(self) -> None:
        draw = sampler(seed=6)
        asked = policy(r_max="empirical", max_draws=256)
        served = (Rejection.run(asked, Toy(draw), i) for i in range(1000))
        assert_follows(served, tilted().responses)


class TestKL:
    def test_kl_bound_counts_max_draws(self) -> None:
        assert {made.kl_bound for made in run(20, max_draws=64)} == {kl.best_of_n_bound(64)}

    @pytest.mark.parametrize(("eta", "margin"), [(0.5, 0.1), (1.0, 0.06), (3.0, 0.02)])
    def test_mean_kl_estimate_is_the_exact_kl(self, eta: float, margin: float) -> None:
        made = run(4000, eta=eta)
        assert {decision.kl_estimator for decision in made} == {"k1"}
        mean = statistics.mean(decision.kl_estimate for decision in made)
        assert mean == pytest.approx(tilted(eta).kl, abs=margin)


class TestReport:
    async def test_report_states_whether_a_response_was_accepted(self) -> None:
        (accepted, *_) = run(1)
        proposal = Toy(lambda prefix, count, m: [(E,)] * count)
        (best,) = await collect(Rejection.run(policy(eta=1e-3, max_draws=2), proposal, 0))
        reports = [report("rejection", [made], trace=False) for made in (accepted, best)]
        assert [made["accepted"] for made in reports] == [True, False]
        assert merged(reports)["accepted"] is False
        assert [made["exact"] for made in reports] == [True, False]
        assert merged(reports)["exact"] is False
        assert merged(reports[:1] * 2)["accepted"] is True


class TestPolicy:
    def test_max_draws_above_max_n_is_rejected(self) -> None:
        policy(max_draws=16).check_limits(Limits())
        with pytest.raises(PolicyError, match=r"alignment\.max_draws is 17; .*1 to 16") as caught:
            policy(max_draws=17).check_limits(Limits())
        assert caught.value.param == "alignment.max_draws"

    def test_width_is_max_draws(self) -> None:
        assert policy(max_draws=20).width == 20
