"""The report of heads that hold the exact values of the tabular model "ab3".

1000 responses in exact proportion to p stand for the distribution, so every figure is exact.
"""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch

from tests.decoders.toy import P, Tokens, ended, soft_value, value
from tests.decoders.toy import reward as reward_of
from value_heads import Base, HeadConfig, QHead, Rollouts, ValueHead
from value_heads.card import markdown
from value_heads.metrics import Selected
from value_heads.report import GAIN_SIZES, HeadReport, measure

from .ab3 import RESPONSES as ROWS
from .ab3 import STATES

PREFIXES: list[Tokens] = [y[:i] for y in ROWS for i in range(1, len(y) + 1)]
EACH: list[float] = [reward_of(y) for y in ROWS for _ in y]
ABOVE = 100.0


def rollouts(rows: list[Tokens] = ROWS, cut: int | None = None) -> Rollouts:
    """One-hot states of the responses, each to a prompt of its own.

    Args:
        cut: tokens after which those that have not ended are cut; their rewards are NaN.
    """
    rows = [y[:cut] for y in rows]
    states = torch.tensor([STATES.index(y[:i]) for y in rows for i in range(len(y) + 1)])
    return Rollouts(
        states=torch.eye(len(STATES))[states],
        tokens=torch.tensor([z for y in rows for z in y]),
        lengths=torch.tensor([len(y) for y in rows]),
        rewards=torch.tensor([[reward_of(y) if ended(y) else math.nan] for y in rows]),
        ended=torch.tensor([ended(y) for y in rows]),
        prompts=torch.arange(len(rows)),
    )


def config(beta: float | None, **changes: object) -> HeadConfig:
    made = HeadConfig(
        architecture="linear",
        kind="mean" if beta is None else "soft",
        beta=beta,
        rewards=("r",),
        hidden_size=len(STATES),
        shift=(0.0,),
        scale=(1.0,),
        base_model="ab3",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@torch.no_grad()
def value_head(of: Callable[[Tokens], float], beta: float | None = None) -> ValueHead:
    head = ValueHead(config(beta))
    head.net.weight.copy_(torch.tensor([[of(state) for state in STATES]]))
    head.net.bias.zero_()
    return head


@torch.no_grad()
def q_head(of: Callable[[Tokens], float], beta: float | None = None) -> QHead:
    """Q(s, z) of each state and token in a row of its own; far off where nothing can follow."""
    sizes = {"rank": len(STATES), "vocab_size": len(P)}
    head = QHead(config(beta, architecture="lowrank", **sizes))
    head.factor.weight.copy_(torch.eye(len(STATES)))
    head.state.weight.zero_()
    head.state.bias.zero_()
    table = [[ABOVE if ended(s) else of((*s, z)) for s in STATES] for z in range(len(P))]
    head.tokens.copy_(torch.tensor([table]))
    return head


def base() -> Base:
    return Base(lm_head=torch.tensor(P).log()[:, None].expand(-1, len(STATES)))


@pytest.fixture(scope="module")
def exact() -> HeadReport:
    return measure(value_head(value), [rollouts()])


class TestExactValues:
    def test_report_counts_responses_and_tokens(self, exact: HeadReport) -> None:
        assert (exact.responses, exact.cut, exact.tokens) == (1000, 0, 2440)
        assert (exact.pairs, exact.residual, exact.beta) == ("any two", "sampled", None)
        assert list(exact.rewards) == ["r"]

    def test_report_errors_of_exact_values_match_enumeration(self, exact: HeadReport) -> None:
        """Var(r|s) is .4284 two tokens before the end and .21 one before; .8 and .64 get there."""
        made = exact.rewards["r"]
        assert made.reward_mean == pytest.approx(0.732)
        assert made.reward_sd == pytest.approx(math.sqrt(0.664176))
        expected = 0.5 * (0.8 * 0.4284 + 0.64 * 0.21) / 2.44
        assert made.half_squared_error == pytest.approx(expected, abs=1e-6)
        assert made.baseline == pytest.approx(0.5 * statistics.pvariance(EACH))
        assert (made.loss, made.baseline_loss) == (made.half_squared_error, made.baseline)

    def test_exact_values_correlate_perfectly_at_the_end(self, exact: HeadReport) -> None:
        assert exact.rewards["r"].at_end == pytest.approx(1)
        assert exact.rewards["r"].pairs_at_end == 1

    def test_report_correlations_of_exact_values_match_enumeration(self, exact: HeadReport) -> None:
        made, values = exact.rewards["r"], [value(s) for s in PREFIXES]
        (only,) = made.by_number
        assert (only.low, only.high, only.tokens) == (1, 8, 2440)
        assert only.correlation == pytest.approx(statistics.correlation(values, EACH))
        begun = [i / len(y) for y in ROWS for i in range(len(y))]
        for bucket in made.by_fraction:
            inside = [i for i, place in enumerate(begun) if bucket.low <= place < bucket.high]
            assert bucket.tokens == len(inside)
            found = [values[i] for i in inside]
            expected = statistics.correlation(found, [EACH[i] for i in inside]) if inside else None
            assert bucket.correlation == pytest.approx(expected, abs=1e-6)
        assert made.pairs_by_number == ()

    def test_exact_values_are_calibrated(self, exact: HeadReport) -> None:
        made = exact.rewards["r"]
        assert made.calibration_gap == pytest.approx(0, abs=1e-6)
        assert sum(found.count for found in made.calibration) == 2440

    def test_bellman_bias_of_exact_values_is_zero(self, exact: HeadReport) -> None:
        """The variance that one token takes away, over the .8 + .64 steps between tokens."""
        made = exact.rewards["r"]
        assert made.bellman_bias == pytest.approx(0, abs=1e-6)
        expected = math.sqrt(0.8 * 0.4284 / (0.8 + 0.64))
        assert made.bellman_rms == pytest.approx(expected, abs=1e-6)

    def test_rest_after_unfinished_prefixes_matches_enumeration(self, exact: HeadReport) -> None:
        """Of 1000 responses 800 go on after one token, and 640 after two.

        The sixteenth with the highest values is bb, whose reward is its 2 or 3, each by chance.
        """
        (rest,) = exact.rewards["r"].remaining
        assert (rest.low, rest.high, rest.prefixes) == (1, 8, 1440)
        assert rest.tokens == pytest.approx((800 * 1.8 + 640 * 1) / 1440)
        expected = math.sqrt((800 * 0.4284 + 640 * 0.21) / 1440)
        assert rest.deviation == pytest.approx(expected, abs=1e-6)
        assert rest.change == pytest.approx(expected, abs=1e-6)
        assert rest.gains == pytest.approx([0.7 - 0.7**n for n in GAIN_SIZES], abs=1e-6)

    def test_value_that_falls_as_the_reward_rises_has_negative_gains(self) -> None:
        (rest,) = measure(value_head(lambda s: -value(s)), [rollouts()]).rewards["r"].remaining
        assert list(rest.gains) == sorted(rest.gains, reverse=True)
        assert rest.gains[-1] < rest.gains[0]
        assert rest.deviation > rest.change

    def test_card_lists_the_rest_after_unfinished_prefixes(self, exact: HeadReport) -> None:
        assert "| tokens to come, mean | 1.4 |" in markdown(exact)

    def test_report_is_independent_of_shards(self, exact: HeadReport) -> None:
        parts = [rollouts(ROWS[:1]), rollouts(ROWS[1:400]), rollouts(ROWS[400:])]
        parts = [replace(part, prompts=part.prompts + 1000 * i) for i, part in enumerate(parts)]
        assert measure(value_head(value), parts) == exact

    def test_constant_offset_shows_in_the_calibration_gap_only(self) -> None:
        made = measure(value_head(lambda s: value(s) - 0.5), [rollouts()]).rewards["r"]
        assert made.calibration_gap == pytest.approx(0.5, abs=1e-6)
        assert made.bellman_bias == pytest.approx(0, abs=1e-6)
        assert made.at_end == pytest.approx(1)

    def test_falling_values_have_a_bellman_bias(self) -> None:
        made = measure(value_head(lambda s: value(s) - 0.1 * len(s)), [rollouts()]).rewards["r"]
        assert made.bellman_bias == pytest.approx(-0.1, abs=1e-6)


class TestSoftValues:
    def test_soft_value_report_has_the_linex_loss(self) -> None:
        """E e^u = 1 at the exact value, so LINEX is the mean of V_soft - V*."""
        made = measure(value_head(soft_value, 1.0), [rollouts()]).rewards["r"]
        expected = statistics.fmean(soft_value(s) - value(s) for s in PREFIXES)
        assert made.loss == pytest.approx(expected, abs=1e-6)
        constant = math.log(statistics.fmean(map(math.exp, EACH)))
        assert made.baseline_loss == pytest.approx(constant - statistics.fmean(EACH), abs=1e-6)

    def test_soft_bellman_bias_of_exact_values_is_zero(self) -> None:
        made = measure(value_head(soft_value, 1.0), [rollouts()]).rewards["r"]
        assert made.bellman_bias == pytest.approx(0, abs=1e-6)
        steps = [soft_value(y[: i + 1]) - soft_value(y[:i]) for y in ROWS for i in range(1, len(y))]
        assert statistics.fmean(steps) < -0.01  # the mean of a soft value's steps is not 0
        rms = math.sqrt(statistics.fmean(step**2 for step in steps))
        assert made.bellman_rms == pytest.approx(rms, abs=1e-6)

    def test_overflowing_linex_loss_is_none(self) -> None:
        report = measure(value_head(lambda s: -2000.0, 1.0), [rollouts()])
        assert report.rewards["r"].loss is None
        assert json.loads(report.to_json())["rewards"]["r"]["loss"] is None


class TestQHeads:
    @pytest.mark.parametrize(("of", "beta"), [(value, None), (soft_value, 1.0)])
    @pytest.mark.parametrize("cut", [None, 2])
    def test_exact_bellman_residual_of_exact_q_is_zero(
        self, of: Callable[[Tokens], float], beta: float | None, cut: int | None
    ) -> None:
        report = measure(q_head(of, beta), [rollouts(cut=cut)], base())
        assert report.residual == "exact"
        assert report.rewards["r"].bellman_bias == pytest.approx(0, abs=1e-6)
        assert report.rewards["r"].bellman_rms == pytest.approx(0, abs=1e-6)

    def test_constant_offset_of_q_shows_in_the_residual_at_ends(self) -> None:
        """The offset cancels except at the ends of responses: 1000 of 2440 tokens."""
        made = measure(q_head(lambda s: value(s) - 0.5), [rollouts()], base()).rewards["r"]
        assert made.bellman_bias == pytest.approx(0.5 / 2.44, abs=1e-6)
        assert made.bellman_rms == pytest.approx(0.5 / math.sqrt(2.44), abs=1e-6)

    def test_q_head_report_equals_the_value_heads_except_residuals(self, exact: HeadReport) -> None:
        made = measure(q_head(value), [rollouts()])
        assert made.residual is None
        found = made.rewards["r"]
        assert (found.bellman_bias, found.bellman_rms) == (None, None)
        wanted = replace(exact.rewards["r"], bellman_bias=None, bellman_rms=None)
        assert found == wanted


class TestCutResponses:
    def test_cut_responses_count_only_in_the_residual(self) -> None:
        """The step to an end alone loses what was still to come: its mean would be negative."""
        report = measure(value_head(value), [rollouts(cut=2)])
        whole = [y for y in ROWS if len(y) < 3 and ended(y)]
        assert (report.responses, report.cut) == (len(whole), 1000 - len(whole))
        assert report.tokens == sum(map(len, whole))
        made = report.rewards["r"]
        assert made.reward_mean == pytest.approx(statistics.fmean(map(reward_of, whole)))
        assert made.bellman_bias == pytest.approx(0, abs=1e-6)

    def test_measure_rejects_rollouts_without_an_end(self) -> None:
        with pytest.raises(ValueError, match="no held-out response ended"):
            measure(value_head(value), [rollouts([(0, 0, 0)], cut=2)])
        with pytest.raises(ValueError, match="no held-out response ended"):
            measure(value_head(value), [])


def numbered(values: list[list[float]], rewards: list[list[float]], prompts: list[int]) -> Rollouts:
    """Responses whose states are their values."""
    return Rollouts(
        states=torch.tensor([one for row in values for one in [0.0, *row]])[:, None],
        tokens=torch.zeros(sum(map(len, values)), dtype=torch.int64),
        lengths=torch.tensor([len(row) for row in values]),
        rewards=torch.tensor(rewards),
        ended=torch.ones(len(values), dtype=torch.bool),
        prompts=torch.tensor(prompts),
    )


@torch.no_grad()
def reader(outputs: int = 1) -> ValueHead:
    """The state, and 0 of any further reward."""
    many = {"shift": (0.0,) * outputs, "scale": (1.0,) * outputs}
    head = ValueHead(config(None, hidden_size=1, rewards=tuple("rst"[:outputs]), **many))
    head.net.weight.copy_(torch.eye(outputs)[:, :1])
    head.net.bias.zero_()
    return head


LONG = [[1.0] * 7 + [9.0], [2.0] * 8 + [0.0], [1.0] * 20, [3.0] * 16 + [4.0]]
GOLD = [[4.0], [3.0], [2.0], [1.0]]


class TestPairs:
    def test_pairs_of_any_two_responses_without_shared_prompts(self) -> None:
        """At token 8 the first has ended; of 2, 1, 3 to 3, 2, 1 one pair of three is right."""
        report = measure(reader(), [numbered(LONG, GOLD, [0, 1, 2, 3])])
        made = report.rewards["r"]
        assert report.pairs == "any two"
        assert [(at.number, at.responses) for at in made.pairs_by_number] == [(8, 3), (16, 2)]
        assert [at.accuracy for at in made.pairs_by_number] == [pytest.approx(1 / 3), 0]
        assert made.pairs_at_end == pytest.approx(3 / 6)  # 9, 0, 1, 4 to 4, 3, 2, 1

    def test_pairs_have_the_same_prompt_if_prompts_have_several_responses(self) -> None:
        """At the end 9 > 0 is right and 1 < 4 is wrong."""
        report = measure(reader(), [numbered(LONG, GOLD, [5, 5, 8, 8])])
        made = report.rewards["r"]
        assert report.pairs == "same prompt"
        assert made.pairs_at_end == 0.5
        assert [at.accuracy for at in made.pairs_by_number] == [0, 0]

    def test_token_buckets_double_up_to_the_longest_response(self) -> None:
        made = measure(reader(), [numbered(LONG, GOLD, [0, 1, 2, 3])]).rewards["r"]
        edges = [(1, 8), (8, 16), (16, 32)]
        assert [(bucket.low, bucket.high) for bucket in made.by_number] == edges
        assert [bucket.tokens for bucket in made.by_number] == [28, 1 + 2 + 8 + 8, 5 + 2]


class TestSelected:
    def test_selected_reward_is_a_mean_over_prompts(self) -> None:
        """The values at the end are 9, 0, 1, 4: the first of prompt 5, the last of prompt 8."""
        mixed = [LONG[2], LONG[0], LONG[3], LONG[1], [7.0]]
        gold = [GOLD[2], GOLD[0], GOLD[3], GOLD[1], [50.0]]
        made = measure(reader(), [numbered(mixed, gold, [8, 5, 8, 5, 1])]).rewards["r"].selected
        assert made is not None
        assert (made.prompts, made.responses) == (2, 2)
        assert (made.chance, made.chosen, made.best) == (2.5, (4 + 1) / 2, (4 + 2) / 2)

    def test_selected_reward_with_uneven_groups_and_ties(self) -> None:
        made = measure(
            reader(), [numbered([[1.0]] * 5, [[3.0], [1.0], [2.0], [5.0], [7.0]], [4, 4, 4, 2, 2])]
        )
        found = made.rewards["r"].selected
        assert found == Selected(prompts=2, responses=2.5, chance=4, chosen=4, best=5)

    def test_selected_is_none_without_two_responses_to_a_prompt(self, exact: HeadReport) -> None:
        assert exact.rewards["r"].selected is None
        assert "selects" not in markdown(exact)

    def test_selected_reward_appears_in_the_model_card(self) -> None:
        card = markdown(measure(reader(), [numbered(LONG, GOLD, [5, 5, 8, 8])]))
        assert card.endswith("| r | 2 | 2 | 2.5 | 2.5 | 3 |\n")


class TestSeveralRewards:
    def test_constant_output_has_no_correlation_and_leaves_others_unchanged(self) -> None:
        gold = [[r, r - 2] for (r,) in GOLD]
        made = measure(reader(2), [numbered(LONG, gold, [0, 1, 2, 3])]).rewards
        alone = measure(reader(), [numbered(LONG, GOLD, [0, 1, 2, 3])]).rewards
        assert made["r"] == alone["r"]
        each = [r for row, (_, r) in zip(LONG, gold, strict=True) for _ in row]
        assert made["s"].half_squared_error == statistics.fmean(r**2 / 2 for r in each)
        assert made["s"].at_end is None
        assert {bucket.correlation for bucket in made["s"].by_number} == {None}
        assert made["s"].pairs_at_end == 0.5
        assert len(made["s"].calibration) == 1

    def test_measure_rejects_another_number_of_rewards(self) -> None:
        with pytest.raises(ValueError, match=r"\[4, 2\] for this head, got \[4, 1\]"):
            measure(reader(2), [numbered(LONG, GOLD, [0, 1, 2, 3])])


def one_token() -> HeadReport:
    return measure(reader(), [numbered([[1.0]], [[2.0]], [0])])


class TestText:
    def test_report_survives_json(self, exact: HeadReport) -> None:
        assert json.loads(exact.to_json()) == json.loads(json.dumps(asdict(exact)))
        assert json.loads(exact.to_json())["tokens"] == 2440

    def test_undefined_numbers_are_null_in_json(self) -> None:
        made = json.loads(one_token().to_json())["rewards"]["r"]
        for name in ("at_end", "pairs_at_end", "bellman_bias", "bellman_rms"):
            assert made[name] is None
        assert made["half_squared_error"] == 0.5

    def test_model_card_has_the_reports_figures(self, exact: HeadReport) -> None:
        card = markdown(exact)
        assert card.startswith("## ")
        assert card.endswith("|\n")
        assert "1000 responses of 2440 tokens" in card
        assert f"| half squared error | {0.5 * 0.47712 / 2.44:.4g} |" in card
        assert f"| Bellman residual, root mean square | {math.sqrt(0.238):.4g} |" in card
        assert "LINEX" not in card
        for above, line in pairwise(card.splitlines()):
            if above.startswith("|") and line.startswith("|"):
                assert above.count("|") == line.count("|")
            elif line.startswith("|"):
                assert above == ""

    def test_model_card_of_a_soft_head_has_the_linex_loss(self) -> None:
        card = markdown(measure(value_head(soft_value, 1.0), [rollouts(cut=2)]))
        assert "LINEX loss, β = 1" in card
        assert "640 more were cut" in card

    def test_model_card_shows_dashes_for_undefined_figures(self) -> None:
        assert "| r | – | – |" in markdown(one_token())
