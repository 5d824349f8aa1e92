"""Best-of-n that stops early: the stop rules, the order of the draws, and the distribution."""

import asyncio
import math
import random
import statistics
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from cdserve import kl, report
from cdserve.decoders import Argmax, Candidate, Decision, Prefix, Score
from cdserve.decoders.best_of_n import BestOfN, BestOfNPolicy
from cdserve.decoders.stopping import (
    AtThreshold,
    ByGain,
    StopRule,
    best_of,
    expected_gain,
    t_excess,
)
from cdserve.errors import PolicyError
from cdserve.policy import parse

from .toy import (
    RESPONSES,
    Distribution,
    Limits,
    Tokens,
    Toy,
    blockwise,
    probability,
    reward,
    sampler,
)


class Timed:
    """A proposal whose candidates end and are scored at given times.

    Args:
        scores: score of each candidate; its length in tokens is 10.
        seconds: duration of each candidate, in units of 2 ms.
        late: number of candidates from which on the deadline has passed.
    """

    def __init__(
        self, scores: Sequence[float], seconds: Sequence[int] = (), late: int | None = None
    ) -> None:
        self.totals = scores
        self.seconds = seconds or [0] * len(scores)
        self.late = late
        self.begun: list[int] = []
        self.running = self.most = 0
        self.ending, self.all_ended = asyncio.Event(), asyncio.Event()
        self.all_ended.set()
        self.fails: set[int] = set()
        self.cut: set[int] = set()
        """Candidates that the deadline cuts short."""
        self.scorings: list[Sequence[Candidate]] = []
        """Candidates of each call of ``score``."""
        self.variance: float | None = None

    @property
    def deadline_passed(self) -> bool:
        return self.late is not None and len(self.begun) >= self.late

    @property
    def score_variance(self) -> float | None:
        return self.variance

    async def sample(self, *args: object) -> Sequence[Candidate]:
        raise NotImplementedError

    async def draw(self, index: int, budget: float | None = None) -> Candidate:
        self.begun.append(index)
        self.running += 1
        self.all_ended.clear()
        self.most = max(self.most, self.running)
        try:
            async with asyncio.timeout(0.002 * self.seconds[index] + 0.0005):
                await self.ending.wait()
            return Candidate(token_ids=(index,) * 4, finish_reason=None, cut=True)
        except TimeoutError:
            if index in self.fails:
                raise ValueError(f"candidate {index}") from None
            if index in self.cut:
                return Candidate(token_ids=(index,) * 4, finish_reason=None, cut=True)
            return Candidate(token_ids=(index,) * 10, finish_reason="stop")
        finally:
            self.running -= 1
            if not self.running:
                self.all_ended.set()

    async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        self.scorings.append([prefix[0] for prefix in prefixes])
        totals = [self.totals[prefix[0].token_ids[0]] for prefix in prefixes]
        return [Score(total, {"r": total}) for total in totals]

    async def abandon(self) -> None:
        self.ending.set()
        await self.all_ended.wait()


async def decide(proposal: Any, **options: Any) -> Decision:
    """The decision of ``best_of``."""
    options = {"select": Argmax(), "at_once": 1, **options}
    (decision,) = [each async for each in best_of(proposal, **options)]
    return decision


def t_excess_by_quadrature(z: float, freedom: int) -> float:
    """∫ (t - z) f(t) dt from z to ∞, by the midpoint rule in t = z + x / (1 - x)."""
    x = (np.arange(200_000) + 0.5) / 200_000
    t = z + x / (1 - x)
    norm = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    log_density = norm - 0.5 * math.log(freedom * math.pi)
    density = np.exp(log_density - (freedom + 1) / 2 * np.log1p(t * t / freedom))
    return float(np.mean(x / (1 - x) * density / (1 - x) ** 2))


class TestExpectedGain:
    @pytest.mark.parametrize("freedom", [3, 4, 5, 8, 15, 63])
    @pytest.mark.parametrize("z", [-1.0, 0.0, 0.4, 1.3, 4.0])
    def test_closed_form_equals_numerical_integration(self, z: float, freedom: int) -> None:
        assert t_excess(z, freedom) == pytest.approx(t_excess_by_quadrature(z, freedom), abs=1e-6)

    def test_two_degrees_of_freedom_have_the_textbook_formula(self) -> None:
        for z in (0.0, 0.5, 3.0):
            assert t_excess(z, 2) == pytest.approx((math.sqrt(2 + z * z) - z) / 2, abs=1e-12)

    def test_many_degrees_of_freedom_approach_the_normal_distribution(self) -> None:
        normal = statistics.NormalDist()
        for z in (0.0, 1.0, 2.0):
            expected = normal.pdf(z) - z * (1 - normal.cdf(z))
            assert t_excess(z, 20_000) == pytest.approx(expected, abs=1e-4)

    def test_gain_without_a_prior_is_infinite_for_fewer_than_five_scores(self) -> None:
        assert expected_gain([1.0, 2.0, 4.0, 3.0]) == math.inf
        assert expected_gain([1.0, 2.0, 4.0, 3.0, 2.0]) < math.inf

    def test_equal_scores_give_no_estimate_without_a_prior(self) -> None:
        assert expected_gain([0.0] * 8) == math.inf
        assert 0 < expected_gain([0.0] * 8, 1.0) < expected_gain([0.0] * 4, 1.0)

    def test_gain_with_a_prior_equals_integration_over_mean_and_variance(self) -> None:
        scores, variance = [0.4, -0.3, 1.1], 0.7
        precision = np.linspace(1e-4, 40, 4000)[:, None]
        mu = np.linspace(-6, 6, 2401)[None, :]
        log_prior = np.log(precision) - 2 * variance * precision  # χ² with 4 degrees of freedom
        log_prior = log_prior + 0.5 * np.log(precision) - 0.5 * precision * mu**2
        squares = sum((score - mu) ** 2 for score in scores)
        weights = np.exp(log_prior + 1.5 * np.log(precision) - 0.5 * precision * squares)
        spread = 1 / np.sqrt(precision)
        z = (max(scores) - mu) / spread
        density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        above = 0.5 * np.vectorize(math.erfc)(z / math.sqrt(2))
        gain = float((weights * spread * (density - z * above)).sum() / weights.sum())
        assert expected_gain(scores, variance) == pytest.approx(gain, rel=2e-3)

    def test_one_score_suffices_with_a_prior(self) -> None:
        assert 0 < expected_gain([2.0], 1.0) < expected_gain([0.0], 1.0) < math.inf

    @pytest.mark.parametrize("size", [1e-200, 1e154, 1e200, 8e307])
    @pytest.mark.parametrize("variance", [None, 0.0, 1e-300])
    def test_gain_of_extreme_scores_is_a_number(self, size: float, variance: float | None) -> None:
        gain = expected_gain([0.0, size, 0.0, size, 2 * size], variance)
        assert gain >= 0

    def test_gain_scales_with_the_scores_and_ignores_their_offset(self) -> None:
        scores = [0.1, 0.7, 0.4, 0.2, 0.3]
        scaled = [3.0 * score for score in scores]
        shifted = [score - 5.0 for score in scaled]
        assert expected_gain(shifted) == pytest.approx(3.0 * expected_gain(scores))
        assert expected_gain(scaled, 9.0) == pytest.approx(3.0 * expected_gain(scores, 1.0))

    def test_gain_relative_to_the_spread_is_calibrated_over_normal_scores(self) -> None:
        rng = random.Random(1)
        expected = gained = 0.0
        for _ in range(20_000):
            scores = [rng.gauss(0, 1) for _ in range(8)]
            spread = statistics.stdev(scores)
            expected += expected_gain(scores) / spread
            gained += max(0.0, rng.gauss(0, 1) - max(scores)) / spread
        assert expected == pytest.approx(gained, rel=0.08)


class TestOrder:
    @pytest.mark.parametrize("at_once", [1, 2, 4, 8])
    def test_selected_candidate_is_the_first_in_order_that_passes(self, at_once: int) -> None:
        rng = random.Random(at_once)
        for _ in range(10):
            scores = [rng.random() for _ in range(8)]
            seconds = [rng.randrange(4) for _ in range(8)]
            proposal = Timed(scores, seconds)
            decision = asyncio.run(decide(proposal, n=8, at_once=at_once, stop=AtThreshold(0.8)))
            first = next((i for i, score in enumerate(scores) if score >= 0.8), None)
            chosen = max(range(8), key=scores.__getitem__) if first is None else first
            assert decision.candidate.token_ids[0] == chosen
            assert len(decision.candidates) == (8 if first is None else first + 1)
            assert proposal.most <= at_once
            assert len(decision.unused) < at_once
            assert proposal.begun == list(range(len(proposal.begun)))
            unused = [candidate.token_ids[0] for candidate in decision.unused]
            assert unused == proposal.begun[len(decision.candidates) :]

    def test_gain_rule_decides_alike_however_many_run_at_once(self) -> None:
        rng = random.Random(3)
        for _ in range(10):
            scores = [rng.gauss(0, 1) for _ in range(12)]
            stop = ByGain(0.02)
            decisions = [
                asyncio.run(
                    decide(
                        Timed(scores, [rng.randrange(3) for _ in scores]),
                        n=12,
                        at_once=at_once,
                        stop=stop,
                    )
                )
                for at_once in (1, 3, 12)
            ]
            assert len({len(decision.candidates) for decision in decisions}) == 1
            assert len({decision.candidate.token_ids for decision in decisions}) == 1
            if len(decisions[0].candidates) < 12:
                assert stop.should_stop(scores[: len(decisions[0].candidates)], [10])

    def test_one_at_a_time_draws_nothing_after_the_stop(self) -> None:
        proposal = Timed([0.0, 1.0, 2.0])
        decision = asyncio.run(decide(proposal, n=3, stop=AtThreshold(1.0)))
        assert proposal.begun == [0, 1]
        assert not decision.unused

    def test_report_counts_abandoned_candidates_and_their_tokens(self) -> None:
        proposal = Timed([1.0, 0.0, 0.0, 0.0], [0, 50, 50, 50])
        decision = asyncio.run(decide(proposal, n=8, at_once=3, stop=AtThreshold(1.0)))
        made = report.report("best_of_n", [decision], trace=True)
        assert made["candidates"] == 3
        assert made["candidate_tokens"] == 10 + 2 * 4
        assert made["draws"] == {"made": 3, "allowed": 8}
        assert made["saved_tokens"] == 8 * 10 - 18
        merged = report.merged([made, made])
        assert merged["draws"] == {"made": 6, "allowed": 16}
        assert merged["saved_tokens"] == 2 * 62

    def test_all_candidates_are_drawn_without_a_stop(self) -> None:
        proposal = Timed([0.2, 0.9, 0.1, 0.4], [3, 2, 1, 0])
        decision = asyncio.run(decide(proposal, n=4, at_once=2))
        assert (len(decision.candidates), decision.chosen) == (4, 1)
        assert decision.kl_estimate == Argmax().kl_estimate([0.0] * 4, None)

    def test_a_candidate_that_fails_ends_all_others(self) -> None:
        proposal = Timed([0.0] * 4, [30, 1, 30, 30])
        proposal.fails = {1}
        with pytest.raises(ValueError, match="candidate 1"):
            asyncio.run(decide(proposal, n=4, at_once=4))
        assert proposal.running == 0

    def test_nothing_begins_after_the_deadline(self) -> None:
        proposal = Timed([0.1, 0.7, 0.3, 0.9], late=2)
        decision = asyncio.run(decide(proposal, n=4))
        assert proposal.begun == [0, 1]
        assert decision.chosen == 1
        assert decision.kl_estimator == "bound"

    def test_one_candidate_is_drawn_if_the_deadline_has_passed_before(self) -> None:
        decision = asyncio.run(decide(Timed([0.1, 0.7], late=0), n=2))
        assert len(decision.candidates) == 1


class TestDeadline:
    def test_rule_does_not_stop_at_a_truncated_candidate(self) -> None:
        proposal = Timed([0.9, 0.6, 0.1])
        proposal.cut = {0}
        decision = asyncio.run(decide(proposal, n=3, stop=AtThreshold(0.5)))
        assert decision.candidate.token_ids[0] == decision.chosen == 1

    def test_best_of_all_candidates_is_selected_after_the_deadline(self) -> None:
        proposal = Timed([0.9, 0.6, 0.7], late=3)
        proposal.cut = {0}
        decision = asyncio.run(decide(proposal, n=8, at_once=3, stop=AtThreshold(0.5)))
        assert decision.candidate.token_ids[0] == decision.chosen == 2
        assert decision.kl_bound == kl.best_of_n_bound(8)

    @pytest.mark.parametrize("stop", [None, AtThreshold(1.0)])
    def test_tokens_saved_by_the_deadline_are_not_reported(self, stop: StopRule | None) -> None:
        decision = asyncio.run(decide(Timed([0.1] * 8, late=2), n=8, stop=stop))
        summary = report.report("best_of_n", [decision], trace=False)
        assert summary["draws"] == {"made": 2, "allowed": 2}
        assert summary["saved_tokens"] == 0

    def test_truncated_candidate_is_scored_as_finished(self) -> None:
        proposal = Timed([0.9], late=1)
        proposal.cut = {0}
        decision = asyncio.run(decide(proposal, n=4))
        assert decision.candidate.finish_reason == "deadline"
        assert proposal.scorings == [[decision.candidate]]


class Failing(Timed):
    """A proposal with a reward that fails for calls with a candidate of ``bad``.

    Args:
        bad: indices of the candidates.
        base: whether ``on_failure`` is ``base``; else the other reward, -1 per candidate, decides.
    """

    def __init__(self, scores: Sequence[float], bad: set[int], base: bool = False) -> None:
        super().__init__(scores)
        self.bad, self.base = bad, base

    async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        scores = await super().score(prefixes)
        if not any(prefix[0].token_ids[0] in self.bad for prefix in prefixes):
            return [Score(s.total - 1.0, {**s.rewards, "other": -1.0}) for s in scores]
        return [Score(0.0 if self.base else -1.0, {"other": -1.0}, ("r",)) for _ in scores]


class TestFailedRewards:
    def test_rule_does_not_stop_at_a_candidate_with_a_failed_reward(self) -> None:
        proposal = Failing([0.2, 0.3, 0.9], {0, 1})
        decision = asyncio.run(decide(proposal, n=8, stop=AtThreshold(-1.0)))
        assert proposal.begun == [0, 1, 2]
        assert len(decision.candidates) == 3

    @pytest.mark.parametrize("stop", [None, AtThreshold(-0.5), ByGain(0.0)])
    @pytest.mark.parametrize("base", [False, True])
    def test_failed_reward_is_left_out_for_all_candidates(
        self, stop: StopRule | None, base: bool
    ) -> None:
        proposal = Failing([0.1, 0.4, 0.6, 0.2], {1}, base)
        decision = asyncio.run(decide(proposal, n=4, stop=stop))
        assert {score.failed for score in decision.scores} == {("r",)}
        assert len({score.total for score in decision.scores}) == 1
        assert decision.chosen == 0

    def test_reward_that_fails_once_decides_after_all(self) -> None:
        proposal = Failing([0.1, 0.4, 0.6], {1})
        score = proposal.score

        async def recovering(prefixes: Sequence[Prefix]) -> Sequence[Score]:
            if len(prefixes) > 1:
                proposal.bad = set()
            return await score(prefixes)

        proposal.score = recovering  # type: ignore[method-assign]
        decision = asyncio.run(decide(proposal, n=3))
        assert decision.chosen == 2
        assert not any(score.failed for score in decision.scores)

    def test_reward_that_fails_for_all_candidates_is_computed_once(self) -> None:
        proposal = Failing([0.1, 0.4], {0, 1})
        decision = asyncio.run(decide(proposal, n=2))
        assert len(proposal.scorings) == 2
        assert decision.chosen == 0


class TestDistribution:
    """The response's distribution on ab3, from all ways in which the draws can fall."""

    @pytest.mark.parametrize(
        "stop", [AtThreshold(1.0), AtThreshold(2.0), ByGain(0.05), ByGain(0.3, 1.0)]
    )
    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_kl_is_within_the_bound_of_the_most_draws(self, stop: StopRule, n: int) -> None:
        stopped = enumerated(stop, n)
        assert sum(stopped.responses.values()) == pytest.approx(1, abs=1e-12)
        assert stopped.kl <= kl.best_of_n_bound(n) + 1e-12
        for subset in ({y for y in RESPONSES if reward(y) >= r} for r in (1, 2, 3)):
            hit = sum(p for y, p in stopped.responses.items() if y in subset)
            missed = 1 - sum(map(probability, subset))
            assert hit <= 1 - missed**n + 1e-12

    def test_threshold_above_all_rewards_is_best_of_n(self) -> None:
        stopped = enumerated(AtThreshold(4.0), 3)
        assert stopped.responses == pytest.approx(blockwise(3, None).responses, abs=1e-12)

    def test_threshold_stop_has_the_reward_of_the_closed_form(self) -> None:
        good = sum(probability(y) for y in RESPONSES if reward(y) >= 1)
        stopped = enumerated(AtThreshold(1.0), 3)
        passed = sum(p for y, p in stopped.responses.items() if reward(y) >= 1)
        assert passed == pytest.approx(1 - (1 - good) ** 3, abs=1e-12)
        for y in RESPONSES:
            if reward(y) >= 1:
                share = probability(y) / good
                assert stopped.responses[y] == pytest.approx(passed * share, abs=1e-12)

    def test_bound_in_the_report_is_that_of_the_most_draws(self) -> None:
        decision = asyncio.run(decide(Timed([1.0] * 16), n=16, stop=AtThreshold(0.5)))
        assert decision.kl_bound == kl.best_of_n_bound(16)

    def test_kl_budget_bounds_the_most_draws(self) -> None:
        decision = asyncio.run(decide(Timed([0.0] * 16), n=16, budget=0.7))
        assert decision.draws is not None
        assert (decision.draws.allowed, decision.limited) == (kl.largest_n(0.7, 16), True)
        assert decision.kl_bound <= 0.7


def enumerated(stop: StopRule | None, n: int) -> Distribution:
    """Distribution of the response, over all draws of n whole responses."""
    responses: dict[Tokens, float] = {}
    with asyncio.Runner() as runner:
        for drawn in product(RESPONSES, repeat=n):
            draws = iter(drawn)
            proposal = Toy(lambda *_, draws=draws: [next(draws)])
            decision = runner.get_loop().run_until_complete(decide(proposal, n=n, stop=stop))
            p = math.prod(map(probability, drawn))
            tokens = decision.candidate.token_ids
            responses[tokens] = responses.get(tokens, 0.0) + p
    return Distribution(responses)


class TestPolicy:
    @pytest.mark.parametrize(
        ("sent", "field", "says"),
        [
            ({"stop": {"gain_per_token": -1}}, "alignment.stop", "'gain_per_token': λ"),
            ({"stop": {"threshold": "high"}}, "alignment.stop", "'threshold': τ"),
            ({"stop": 0.5}, "alignment.stop", "is 0.5; it takes"),
            ({"stop": {"until": 1}}, "alignment.stop", "it takes"),
            ({"at_once": 0}, "alignment.at_once", "at least 1"),
        ],
    )
    def test_invalid_fields_are_named(self, sent: Any, field: str, says: str) -> None:
        with pytest.raises(PolicyError) as caught:
            policy(**sent)
        assert caught.value.param == field
        assert says in str(caught.value)

    def test_stop_needs_the_selection_argmax(self) -> None:
        soft = policy(stop={"threshold": 1}, selection={"softmax": 1})
        with pytest.raises(PolicyError, match="argmax") as caught:
            soft.check_limits(Limits())
        assert caught.value.reason == "combination"
        policy(at_once=2, selection={"softmax": 1}).check_limits(Limits())

    @pytest.mark.parametrize(("at_once", "concurrent"), [(None, 8), (1, 1), (3, 3), (20, 8)])
    def test_at_once_limits_the_candidates_to_admit(
        self, at_once: int | None, concurrent: int
    ) -> None:
        limited = policy(at_once=at_once)
        assert (limited.concurrent, limited.width) == (concurrent, 8)

    @pytest.mark.parametrize("at_once", [None, 1, 3, 8, 20])
    @pytest.mark.parametrize("selection", ["argmax", {"softmax": 0.3}])
    def test_stop_that_never_triggers_selects_as_plain_best_of_n(
        self, at_once: int | None, selection: Any
    ) -> None:
        for seed in range(20):
            plain = run(policy(selection=selection), seed)
            stop = {"gain_per_token": 0} if selection == "argmax" else None
            sparing = run(policy(selection=selection, stop=stop, at_once=at_once), seed)
            assert sparing.candidate == plain.candidate
            assert sparing.scores == plain.scores
            assert sparing.kl_bound == plain.kl_bound

    def test_prior_variance_comes_from_the_proposal(self) -> None:
        proposal = Timed([0.0] * 8)
        proposal.variance = 1e-6
        decision = asyncio.run(first(policy(stop={"gain_per_token": 0.1}, at_once=1), proposal, 0))
        assert len(decision.candidates) == 1
        proposal = Timed([0.0] * 8)
        decision = asyncio.run(first(policy(stop={"gain_per_token": 0.1}, at_once=1), proposal, 0))
        assert len(decision.candidates) == 8


def policy(**fields: Any) -> BestOfNPolicy:
    """A policy of best-of-8."""
    given = {name: value for name, value in fields.items() if value is not None}
    parsed = parse({"method": "best_of_n", "n": 8, **given}, {"best_of_n": BestOfNPolicy}, {})
    assert isinstance(parsed, BestOfNPolicy)
    return parsed


async def first(policy: BestOfNPolicy, proposal: Any, seed: int) -> Decision:
    (decision,) = [each async for each in BestOfN.run(policy, proposal, seed)]
    return decision


def run(policy: BestOfNPolicy, seed: int) -> Decision:
    """The decision on ab3 with draws of a seed; drawn together or apart, they are the same."""
    return asyncio.run(first(policy, Toy(sampler(seed)), seed))
