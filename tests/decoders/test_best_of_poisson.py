"""Best-of-Poisson: the number drawn, the distribution on ab3, and its KL."""

import math
from collections import Counter
from itertools import pairwise

import pytest

from cdserve import kl
from cdserve.decoders import BestOfN, BestOfNPolicy, BestOfPoisson, BestOfPoissonPolicy
from cdserve.decoders.best_of_poisson import CUT, MAX_MU, largest_mu, poisson_quantile
from cdserve.errors import PolicyError

from .toy import (
    RESPONSES,
    Distribution,
    Limits,
    Toy,
    assert_follows,
    blockwise,
    collect,
    probability,
    reward,
    sampler,
)


def policy(mu: float, **fields: object) -> BestOfPoissonPolicy:
    return BestOfPoissonPolicy.model_validate({"method": "best_of_poisson", "mu": mu, **fields})


def exact(mu: float) -> Distribution:
    """The distribution on ab3: the quantiles of a reward level have mass G(F) - G(F-)."""
    responses = {}
    for y in RESPONSES:
        below = sum(probability(z) for z in RESPONSES if reward(z) < reward(y))
        level = sum(probability(z) for z in RESPONSES if reward(z) == reward(y))
        mass = _cumulative(below + level, mu) - _cumulative(below, mu)
        responses[y] = mass * probability(y) / level
    return Distribution(responses)


def _cumulative(u: float, mu: float) -> float:
    return u * math.exp(mu * (u - 1))


class TestNumber:
    """1 + Poisson(mu), by the quantile of one uniform number."""

    @pytest.mark.parametrize("mu", [0.3, 1.0, 4.0, 16.0])
    def test_number_of_responses_is_one_plus_poisson(self, mu: float) -> None:
        jumps = [0.0, *(_jump(mu, n) for n in range(1, poisson_quantile(mu, 1.0)))]
        for k, (low, high) in enumerate(pairwise(jumps)):
            p = math.exp(-mu + k * math.log(mu) - math.lgamma(k + 1))
            assert high - low == pytest.approx(p, abs=1e-12)

    @pytest.mark.parametrize("mu", [0.3, 1.0, 4.0, 16.0, 60.0])
    def test_poisson_tail_beyond_width_has_probability_one_in_a_million(self, mu: float) -> None:
        most = poisson_quantile(mu, 1.0)
        tail = 1 - math.fsum(
            math.exp(-mu + k * math.log(mu) - math.lgamma(k + 1)) for k in range(most)
        )
        assert 0 < tail <= CUT
        assert policy(mu).width == most

    def test_zero_mu_always_draws_one_response(self) -> None:
        assert {poisson_quantile(0.0, u) for u in (0.0, 0.5, 1.0)} == {1}

    def test_quantiles_at_the_largest_mu_stay_near_mu(self) -> None:
        assert poisson_quantile(MAX_MU, 0.5) == pytest.approx(MAX_MU, rel=1e-3)
        assert poisson_quantile(MAX_MU, 1.0) < MAX_MU * 1.06


class TestDistribution:
    @pytest.mark.parametrize("mu", [0.5, 2.0])
    def test_best_of_poisson_is_the_poisson_mixture_of_best_of_n(self, mu: float) -> None:
        mixed: Counter[tuple[int, ...]] = Counter()
        for k in range(60):
            p = math.exp(-mu + k * math.log(mu) - math.lgamma(k + 1))
            for y, mass in _best_of(k + 1).items():
                mixed[y] += p * mass
        assert dict(mixed) == pytest.approx(exact(mu).responses, abs=1e-14)

    @pytest.mark.parametrize("mu", [1.0, 4.0])
    def test_sampled_responses_follow_the_exact_distribution(self, mu: float) -> None:
        draw = sampler(seed=1)
        served = (BestOfPoisson.run(policy(mu), Toy(draw), seed) for seed in range(3000))
        assert_follows(served, exact(mu).responses)

    def test_chi_square_check_detects_a_wrong_mu(self) -> None:
        draw = sampler(seed=1)
        served = (BestOfPoisson.run(policy(4.0), Toy(draw), seed) for seed in range(3000))
        with pytest.raises(AssertionError):
            assert_follows(served, exact(1.0).responses)

    @pytest.mark.parametrize("mu", [0.1, 1.0, 4.0, 16.0])
    def test_exact_kl_is_below_mean_estimate_and_bound(self, mu: float) -> None:
        served = exact(mu)
        estimate = sum(
            p * kl.best_of_poisson_estimate(math.log(probability(y)), mu)
            for y, p in served.responses.items()
        )
        assert served.kl < estimate < kl.best_of_poisson_bound(mu)


class TestDecisions:
    async def test_zero_mu_draws_once_at_zero_kl(self) -> None:
        (decision,) = await collect(BestOfPoisson.run(policy(0.0), Toy(sampler(2)), 5))
        plain = BestOfNPolicy(method="best_of_n", n=1)
        (one,) = await collect(BestOfN.run(plain, Toy(sampler(2)), 5))
        assert decision.candidates == one.candidates
        assert decision.kl_bound == decision.kl_estimate == 0

    async def test_kl_depends_on_mu_and_not_on_the_number_drawn(self) -> None:
        runs = [BestOfPoisson.run(policy(3.0), Toy(sampler(i)), i) for i in range(20)]
        made = [(await collect(run))[0] for run in runs]
        assert len({len(decision.candidates) for decision in made}) > 3
        assert {d.kl_bound for d in made} == {kl.best_of_poisson_bound(3.0)}
        assert {d.kl_estimator for d in made} == {"epsilon_mu"}

    async def test_seed_reproduces_the_number_of_responses(self) -> None:
        async def counts(seed: int) -> list[int]:
            runs = [BestOfPoisson.run(policy(4.0), Toy(sampler(1)), seed + i) for i in range(20)]
            return [len((await collect(run))[0].candidates) for run in runs]

        assert await counts(0) == await counts(0) != await counts(1)


class TestLimits:
    @pytest.mark.parametrize("max_n", [2, 8, 16, 64])
    def test_largest_mu_is_within_the_limit_and_slightly_more_is_not(self, max_n: int) -> None:
        assert (
            poisson_quantile(largest_mu(max_n), 1.0)
            <= max_n
            < poisson_quantile(largest_mu(max_n) + 2e-3, 1.0)
        )

    def test_mu_above_max_n_is_rejected_with_the_largest_mu(self) -> None:
        message = r"alignment\.mu is 8\.0, .*up to \d+ responses.*up to 16, a mu of 0 to 3\.\d+$"
        with pytest.raises(PolicyError, match=message) as caught:
            policy(8.0).check_limits(Limits())
        assert caught.value.param == "alignment.mu"

    def test_mu_within_max_n_is_accepted(self) -> None:
        policy(3.5).check_limits(Limits())


def _jump(mu: float, n: int) -> float:
    """Where the number drawn passes ``n``."""
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if poisson_quantile(mu, middle) <= n else (low, middle)
    return high


def _best_of(n: int) -> dict[tuple[int, ...], float]:
    if n <= 3:
        return blockwise(n, None).responses
    made = {}
    for y in RESPONSES:
        below = sum(probability(z) for z in RESPONSES if reward(z) < reward(y))
        level = sum(probability(z) for z in RESPONSES if reward(z) == reward(y))
        made[y] = ((below + level) ** n - below**n) * probability(y) / level
    return made
