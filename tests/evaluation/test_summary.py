"""Figures, alarms, fits and results from hand-written records."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdserve import kl
from cdserve.client.policies import NamedPolicy
from cdserve.evaluation.markdown import markdown
from cdserve.evaluation.overoptimisation import against_base, along, best_of_n_curve, fit
from cdserve.evaluation.plots import PLOTS, draw
from cdserve.evaluation.positions import kl_by_position
from cdserve.evaluation.records import Record, key, seed_of
from cdserve.evaluation.results import Results, results
from cdserve.evaluation.statistics import wilson
from cdserve.evaluation.summary import summarise

reproducible = settings(derandomize=True, deadline=None, max_examples=100)
BASE = [0.1, 0.4, -0.3, 0.0, 0.2, 0.5, -0.1, 0.3]


def of(prompt: int, reward: float, gold: float | None = None, **fields: Any) -> Record:
    """A record with default fields."""
    defaults = {
        "prompt": prompt,
        "draw": 0,
        "seed": 0,
        "text": "good film",
        "finish_reason": "stop",
        "tokens": 4,
        "began": 100.0 + prompt,
        "seconds": 2.0,
        "blocks": [0.5, 1.0, 2.0],
        "reward": reward,
        "gold": gold,
        "report": None,
        "steps": None,
        "pool": None,
    }
    return Record(**(defaults | fields))


def all_of(rewards: Sequence[float], golds: Sequence[float | None] | None = None) -> list[Record]:
    """One record per prompt."""
    all_golds = golds or [None] * len(rewards)
    return [of(i, r, g) for i, (r, g) in enumerate(zip(rewards, all_golds, strict=True))]


def report(bound: float, estimate: float, **fields: Any) -> dict[str, Any]:
    """A server report with three candidates per decision."""
    return {
        "method": "blockwise_cd",
        "decisions": 2,
        "candidates": 6,
        "candidate_tokens": 12,
        "ties": 1,
        "kl": {"bound": bound, "estimate": estimate, "estimator": "epsilon_n", "flag": "ok"},
        **fields,
    }


def shifted(values: Sequence[float], by: float) -> list[float]:
    """The values plus ``by``, with small differences between them."""
    return [value + by + 0.01 * (i % 3) for i, value in enumerate(values)]


class TestWinRate:
    def test_tie_counts_as_half_a_win(self) -> None:
        figures = summarise(all_of([1, 2, 3, 4]), all_of([0, 2, 3, 5]), plain=False).reward
        assert figures.win_rate.mean == 0.5
        assert figures.ties == 0.5
        assert figures.mean.mean == 2.5
        assert figures.gain.mean == 0.0

    def test_prompt_with_several_answers_counts_once(self) -> None:
        answers = [of(0, 3.0), of(0, 1.0, draw=1), of(1, 5.0), of(1, 5.0, draw=1)]
        base = [of(0, 2.0), of(0, 0.0, draw=1), of(1, 5.0), of(1, 5.0, draw=1)]
        figures = summarise(answers, base, plain=False)
        assert figures.answers == 4
        assert figures.prompts == 2
        assert figures.reward.win_rate.mean == (0.75 + 0.5) / 2
        assert figures.reward.ties == 0.5
        assert figures.reward.win_rate == wilson(1.25, 2)  # two prompts, not four answers

    @reproducible
    @given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=2, max_size=12))
    def test_win_rates_of_both_sides_sum_to_one(self, pairs: list[tuple[int, int]]) -> None:
        answers, base = (all_of([pair[i] for pair in pairs]) for i in (0, 1))
        one = summarise(answers, base, plain=False).reward
        other = summarise(base, answers, plain=False).reward
        assert one.win_rate.mean + other.win_rate.mean == pytest.approx(1.0)
        assert one.gain.mean == pytest.approx(-other.gain.mean)
        assert one.ties == other.ties


class TestCost:
    def test_candidate_tokens_and_tie_rate_come_from_reports(self) -> None:
        records = [of(i, 0.0, report=report(1.0, 0.5)) for i in range(3)]
        figures = summarise(records, all_of([0, 0, 0]), plain=False)
        assert figures.candidate_tokens == 3.0
        assert figures.tie_rate == 0.5

    def test_base_draws_one_token_per_token_and_has_zero_kl(self) -> None:
        base = all_of([0, 1, 2])
        figures = summarise(base, base, plain=True)
        assert figures.candidate_tokens == 1.0
        assert figures.tie_rate is None
        assert figures.kl is not None
        assert figures.kl.estimate.mean == 0.0

    def test_figures_without_reports_have_no_kl_or_candidate_tokens(self) -> None:
        figures = summarise(all_of([0, 1]), all_of([0, 1]), plain=False)
        assert figures.candidate_tokens is None
        assert figures.kl is None

    def test_tie_rate_is_none_with_one_candidate_per_decision(self) -> None:
        single = report(0.0, 0.0, candidates=2, ties=0)
        assert summarise([of(0, 0.0, report=single)], all_of([0]), plain=False).tie_rate is None

    def test_draws_and_saved_tokens_are_means_of_reports(self) -> None:
        stopped = [
            report(1.0, 0.5, draws={"made": made, "allowed": 16}, saved_tokens=saved)
            for made, saved in ((3, 100), (8, 50))
        ]
        records = [of(i, 0.0, report=each) for i, each in enumerate(stopped)]
        figures = summarise(records, all_of([0, 0]), plain=False)
        assert (figures.draws, figures.saved_tokens) == (5.5, 75.0)

    def test_draws_are_none_unless_every_report_has_them(self) -> None:
        stopped = report(1.0, 0.5, draws={"made": 3, "allowed": 16}, saved_tokens=9)
        records = [of(0, 0.0, report=stopped), of(1, 0.0, report=report(1.0, 0.5))]
        figures = summarise(records, all_of([0, 0]), plain=False)
        assert (figures.draws, figures.saved_tokens) == (None, None)

    def test_shares_of_ended_candidates_come_from_reports(self) -> None:
        ends = [
            {"decisions": 1, "candidates": 3, "ended": 1, "selected": 1},
            {"decisions": 1, "candidates": 3, "ended": 2, "selected": 0},
        ]
        records = [of(i, 0.0, report=report(1.0, 0.5, ends=each)) for i, each in enumerate(ends)]
        figures = summarise([*records, of(2, 0.0)], all_of([0, 0, 0]), plain=False)
        assert (figures.ended_candidates, figures.ended_selected) == (0.5, 0.5)

    def test_shares_of_ended_candidates_are_none_without_such_decisions(self) -> None:
        ends = {"decisions": 0, "candidates": 0, "ended": 0, "selected": 0}
        records = [of(0, 0.0, report=report(1.0, 0.5, ends=ends)), of(1, 0.0)]
        figures = summarise(records, all_of([0, 0]), plain=False)
        assert (figures.ended_candidates, figures.ended_selected) == (None, None)

    def test_latency_figures_equal_hand_computed_values(self) -> None:
        records = [of(0, 0.0), of(1, 0.0), of(9, 0.0)]
        figures = summarise(records, records, plain=False)
        assert figures.latency.first_p50 == 0.5
        assert figures.latency.inter_p50 == 0.75
        assert figures.latency.inter_p99 == pytest.approx(1.0)
        assert figures.latency.answer_p50 == figures.latency.answer_p99 == 2.0
        assert figures.latency.tokens_per_second == 12 / 6
        assert figures.latency.throughput == 12 / 5  # the first two are one second apart

    def test_single_block_answer_has_no_inter_block_time(self) -> None:
        figures = summarise([of(0, 0.0, blocks=[1.5])], all_of([0]), plain=False).latency
        assert figures.first_p99 == 1.5
        assert figures.inter_p99 is None

    def test_answer_without_text_has_no_first_block_time(self) -> None:
        figures = summarise([of(0, 0.0, blocks=[], text="", tokens=1)], all_of([0]), plain=False)
        assert figures.latency.first_p50 is None
        assert list(figures.distinct) == [None, None, None]

    def test_cut_share_and_reward_length_correlation_are_computed(self) -> None:
        records = [of(0, 1.0, tokens=10, finish_reason="length"), of(1, 2.0, tokens=30)]
        figures = summarise(records, all_of([0, 0]), plain=False)
        assert figures.cut == 0.5
        assert figures.tokens.mean == 20
        assert figures.reward_length == pytest.approx(1.0)


class TestPositions:
    def test_kl_of_a_decision_is_spread_over_its_tokens(self) -> None:
        steps = [[32, 1.6, 0.8], [8, 0.8, 0.4]]
        (first, second, third) = kl_by_position([of(0, 0.0, report=report(2.4, 1.2), steps=steps)])
        assert (first.low, first.high, first.tokens) == (0, 16, 16)
        assert (second.low, second.high, second.tokens) == (16, 32, 16)
        assert (third.low, third.high, third.tokens) == (32, 64, 8)
        assert first.bound == second.bound == pytest.approx(0.05)
        assert third.bound == pytest.approx(0.1)
        assert first.estimate == pytest.approx(0.025)

    def test_kl_of_steering_is_spread_over_all_tokens(self) -> None:
        record = of(0, 0.0, report=report(3.0, 3.0), steps=[[20, 0.0, 0.0]])
        buckets = kl_by_position([record])
        assert [bucket.estimate for bucket in buckets] == pytest.approx([0.15, 0.15])
        divergence = summarise([record], all_of([0]), plain=False).kl
        assert divergence is not None
        assert divergence.even

    def test_bucket_means_are_over_answers_that_reach_the_bucket(self) -> None:
        short = of(0, 0.0, report=report(1.6, 1.6), steps=[[16, 1.6, 1.6]])
        long = of(1, 0.0, report=report(6.4, 6.4), steps=[[16, 0.0, 0.0], [16, 6.4, 6.4]])
        first, second = kl_by_position([short, long])
        assert (first.tokens, first.bound) == (32, pytest.approx(0.05))
        assert (second.tokens, second.bound) == (16, pytest.approx(0.4))
        divergence = summarise([short, long], all_of([0, 0]), plain=False).kl
        assert divergence is not None
        assert not divergence.even

    @reproducible
    @given(
        st.lists(
            st.tuples(st.integers(1, 70), st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=8
        ),
        st.floats(0, 5),
    )
    def test_kl_by_position_sums_to_the_reported_kl(
        self, steps: list[tuple[int, float, float]], steering: float
    ) -> None:
        bound, estimate = (math.fsum(step[i] for step in steps) + steering for i in (1, 2))
        buckets = kl_by_position([of(0, 0.0, report=report(bound, estimate), steps=steps)])
        assert sum(bucket.tokens for bucket in buckets) == sum(step[0] for step in steps)
        total = sum(bucket.tokens * bucket.bound for bucket in buckets)
        assert total == pytest.approx(bound, abs=1e-6)
        assert sum(b.tokens * b.estimate for b in buckets) == pytest.approx(estimate, abs=1e-6)

    def test_kl_by_position_is_none_without_a_trace(self) -> None:
        divergence = summarise([of(0, 0.0, report=report(1.0, 1.0))], all_of([0]), plain=False).kl
        assert divergence is not None
        assert divergence.by_position is None


class TestAlarm:
    def test_alarm_if_reward_rises_and_gold_falls(self) -> None:
        records = all_of(shifted(BASE, 1.0), shifted(BASE, -1.0))
        alarm = against_base("far", records, all_of(BASE, BASE))
        assert alarm is not None
        assert (alarm.policy, alarm.against, alarm.level) == ("far", "base", 0.95)
        assert alarm.reward.mean == pytest.approx(1.0, abs=0.02)
        assert alarm.gold.mean == pytest.approx(-1.0, abs=0.02)

    @pytest.mark.parametrize(
        ("reward", "gold"), [(1.0, 1.0), (-1.0, -1.0), (-1.0, 1.0), (1.0, 0.0), (0.0, -1.0)]
    )
    def test_no_alarm_for_other_directions(self, reward: float, gold: float) -> None:
        def moved(by: float) -> list[float]:
            return [value + by * (0.2 + i % 2) for i, value in enumerate(BASE)]

        records = all_of(moved(reward), moved(gold))
        assert against_base("policy", records, all_of(BASE, BASE)) is None

    def test_no_alarm_within_noise(self) -> None:
        golds = [value + (-1) ** i - 0.05 for i, value in enumerate(BASE)]
        records = all_of(shifted(BASE, 1.0), golds)
        assert against_base("policy", records, all_of(BASE, BASE)) is None

    def test_sweep_alarm_reports_the_largest_fall(self) -> None:
        peak = {"n=2": 0.5, "n=4": 1.0, "n=8": 0.7, "n=16": -0.2}
        points = [
            (name, float(i), all_of(shifted(BASE, i), shifted(BASE, gold)))
            for i, (name, gold) in enumerate(peak.items())
        ]
        alarms = along(points[::-1])  # in whatever order
        assert {alarm.policy: alarm.against for alarm in alarms} == {"n=8": "n=4", "n=16": "n=4"}
        assert all(alarm.level == pytest.approx(1 - 0.05 / 6) for alarm in alarms)

    def test_no_alarm_from_a_single_prompt(self) -> None:
        assert against_base("policy", all_of([9.0], [-9.0]), all_of([0.0], [0.0])) is None


class TestFit:
    def test_fit_recovers_coefficients_and_peak(self) -> None:
        bounds = [kl.best_of_n_bound(n) for n in (2, 4, 8, 16, 32)]
        gains = [math.sqrt(nats) * (1.0 - 0.5 * math.sqrt(nats)) for nats in bounds]
        fitted = fit(list(zip(bounds, gains, strict=True)))
        assert fitted is not None
        assert (fitted.a, fitted.b) == (pytest.approx(1.0), pytest.approx(0.5))
        assert fitted.peak == pytest.approx(1.0)
        assert fitted.recommended_n == pytest.approx(kl.effective_n(1.0))
        assert fitted.measured == bounds[-1]

    def test_fit_of_rising_gain_recommends_no_n(self) -> None:
        fitted = fit([(nats, math.sqrt(nats)) for nats in (0.2, 0.6, 1.2)])
        assert fitted is not None
        assert fitted.b == pytest.approx(0.0)
        assert fitted.recommended_n is None or fitted.recommended_n > 1e6

    @pytest.mark.parametrize(("slope", "peak", "n"), [(1.0, None, None), (-1.0, 0.0, 1.0)])
    def test_monotonic_gains_peak_nowhere_or_at_the_base(
        self, slope: float, peak: float | None, n: float | None
    ) -> None:
        fitted = fit([(nats, slope * nats) for nats in (1.0, 4.0, 9.0)])
        assert fitted is not None
        assert fitted.b == pytest.approx(-slope)
        assert (fitted.peak, fitted.recommended_n) == (peak, n)

    def test_fit_of_two_points_is_none(self) -> None:
        assert fit([(0.0, 0.0), (0.2, 0.1), (0.6, 0.2)]) is None


class TestCurve:
    def test_curve_has_rewards_up_to_the_pool_size(self) -> None:
        pools = {0: [0.1, 0.4, 0.35, 0.8, 0.6], 1: [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]}
        points = {point.n: point for point in best_of_n_curve(16, pools)}
        assert points[1].reward == pytest.approx((0.45 + 0.5) / 2)
        assert points[5].reward == pytest.approx((0.8 + 1.0) / 2)
        assert points[16].reward is None
        assert points[16].kl == kl.best_of_n_bound(16)
        assert points[16].win_rate == 16 / 17

    def test_curve_without_pools_has_no_rewards(self) -> None:
        assert all(point.reward is None for point in best_of_n_curve(16, {}))


def test_request_seeds_are_distinct_and_reproducible() -> None:
    seeds = {seed_of(s, p, i, d) for s in (0, 1) for p in "ab" for i in (0, 1) for d in (0, 1)}
    assert len(seeds) == 16
    assert seed_of(0, "base", 3, 1) == seed_of(0, "base", 3, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_record_round_trips_through_the_journal() -> None:
    record = of(3, 0.5, 0.25, steps=[[4, 0.1, 0.1]], pool=[0.5, 0.1])
    written = record.written()
    assert written["id"] == key(3, 0)
    assert Record.read(written) == record


class TestResults:
    def build(self, gold: bool = True, **fields: Any) -> Results:
        """Results of a sweep, whose reports have further fields, and a preset."""
        sweep = [
            NamedPolicy(f"best_of_n n={n}", {"method": "best_of_n", "n": n}, "best_of_n", f"n={n}")
            for n in (2, 4, 8)
        ]
        preset = NamedPolicy("pre|set", "quiet")
        golds = [0.4, 0.2, -1.0]
        records = {"base": all_of(BASE, BASE if gold else None)}
        for i, policy in enumerate(sweep):
            bound = kl.best_of_n_bound(2 << i)
            records[policy.name] = [
                of(
                    record.prompt,
                    record.reward,
                    record.gold,
                    report=report(bound, 0.9 * bound, decisions=1, **fields),
                    steps=[[4, bound, 0.9 * bound]],
                    pool=[0.1 * j for j in range(2 << i)],
                    blocks=[1.0 + i],
                )
                for record in all_of(
                    shifted(BASE, 0.5 * (i + 1)), shifted(BASE, golds[i]) if gold else None
                )
            ]
        records["pre|set"] = all_of(shifted(BASE, 0.1), BASE if gold else None)
        settings = {
            "model": "demo",
            "reward": "sentiment",
            "gold": "my:gold" if gold else None,
            "concurrency": 2,
            "policies": {
                "base": {"method": "none"},
                **{policy.name: policy.alignment for policy in sweep},
                "pre|set": {"preset": "quiet", "method": "blockwise_cd", "k": 2, "m": 8},
            },
        }
        return results(
            [*sweep, preset], records, command="cdserve eval", settings=settings, draws=1
        )

    def test_results_have_sweeps_alarms_fits_and_curve(self) -> None:
        evaluated = self.build()
        assert dict(evaluated.sweeps) == {"best_of_n": [f"best_of_n n={n}" for n in (2, 4, 8)]}
        assert evaluated.alarms is not None
        assert {(alarm.policy, alarm.against) for alarm in evaluated.alarms} == {
            ("best_of_n n=8", "base"),
            ("best_of_n n=4", "best_of_n n=2"),
            ("best_of_n n=8", "best_of_n n=2"),
        }
        assert evaluated.fits["best_of_n"].peak is not None
        # 1 of the base's and 2 + 4 + 8 candidates of each prompt
        assert max(point.n for point in evaluated.best_of_n if point.reward is not None) == 15
        text = markdown(evaluated)
        assert "**Alarm:** `best_of_n n=8` against `base`" in text
        assert "pre\\|set" in text
        assert all(f"]({plot.file})" in text for plot in PLOTS)

    def test_table_has_draws_and_saved_tokens_if_reports_have_them(self) -> None:
        assert "draws" not in markdown(self.build())
        text = markdown(self.build(draws={"made": 3, "allowed": 8}, saved_tokens=120))
        assert "| draws | saved tokens |" in text
        assert "| 3.0   | 120          |" in text
        assert "| –     | –            |" in text

    def test_results_without_held_out_reward_have_no_alarms(self, tmp_path: Path) -> None:
        evaluated = self.build(gold=False)
        assert evaluated.alarms is None
        assert "requires a held-out reward" in markdown(evaluated)
        draw(evaluated, tmp_path)

    def test_equal_results_give_identical_files(self, tmp_path: Path) -> None:
        written = []
        for name in ("one", "two"):
            (folder := tmp_path / name).mkdir()
            draw(self.build(), folder)
            self.build().write(folder / "results.json")
            written.append({path.name: path.read_bytes() for path in folder.iterdir()})
        assert written[0] == written[1]
        assert set(written[0]) == {plot.file for plot in PLOTS} | {"results.json"}
        assert b"n / (n + 1)" not in written[0]["reward_latency.svg"]
        assert b"best-of-n in theory" in written[0]["reward_kl.svg"]
        assert b"n=8" in written[0]["reward_seconds.svg"]
