"""Figures of value heads on held-out responses, and the outlook of an objective."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cdserve import config
from cdserve.decoders import BlockwiseCDPolicy, Outlook
from cdserve.demo.tiny import HEAD_DIR
from cdserve.errors import PolicyError
from cdserve.scoring import HeadOutput, HeldOut, Reward, build, objective

MEASURED = HeldOut(
    lengths=[4.0, 16.0],
    outlooks=[
        Outlook(tokens=40.0, deviation=0.4, gains=[-0.2, 0.3]),
        Outlook(tokens=20.0, deviation=0.2, gains=[0.1, 0.1]),
    ],
)


def rewards(kind: str = "mean", **standardise: Any) -> dict[str, Reward]:
    head = config.ValueHeadReward(kind="value_head", path="head")
    settings: dict[str, config.Reward] = {
        "polite": head.model_copy(update=standardise),
        "warm": head,
        "unmeasured": head,
        "brevity": config.LengthReward(kind="length", target=4),
    }
    output = HeadOutput(kind=kind, shift=1.0, scale=2.0, held_out=MEASURED)
    heads = {
        "polite": output,
        "warm": output,
        "unmeasured": HeadOutput(kind=kind, shift=0, scale=1),
    }
    return build(settings, heads)


def outlook(weights: dict[str, float], tokens: int = 4, **standardise: Any) -> Outlook | None:
    policy = BlockwiseCDPolicy(method="blockwise_cd", k=2, m=2, rewards=weights)
    return objective(policy, rewards(**standardise), None).outlook(tokens)


class TestHeldOut:
    def test_figures_of_the_demo_head_are_in_its_report(self) -> None:
        held_out = HeldOut.read(HEAD_DIR, "sentiment")
        assert held_out is not None
        after_32 = held_out.at(32)
        assert 0.15 < after_32.deviation < 0.3
        assert list(after_32.gains) == sorted(after_32.gains)
        assert -0.1 < after_32.gains[0] < 0 < after_32.gains[-1] < 0.3
        assert 30 < after_32.tokens < 45

    @pytest.mark.parametrize(
        "content",
        [
            None,
            "not JSON",
            "[]",
            json.dumps({"held_out": {"rewards": {"sentiment": {"reward_mean": 0.5}}}}),
            json.dumps({"held_out": {"rewards": {"other": {"remaining": []}}}}),
            json.dumps({"held_out": {"rewards": {"sentiment": {"remaining": []}}}}),
        ],
    )
    def test_head_without_figures_has_none(self, content: str | None, tmp_path: Path) -> None:
        if content is not None:
            (tmp_path / "report.json").write_text(content)
        assert HeldOut.read(tmp_path, "sentiment") is None

    @pytest.mark.parametrize(
        ("tokens", "gain"), [(1, 0.3), (4, 0.3), (8, 0.2), (16, 0.1), (999, 0.1)]
    )
    def test_figures_between_lengths_are_interpolated_in_the_log(
        self, tokens: int, gain: float
    ) -> None:
        assert MEASURED.at(tokens).gains[1] == pytest.approx(gain)


class TestObjective:
    def test_outlook_is_scaled_by_the_weight(self) -> None:
        made = outlook({"polite": 0.5})
        assert made == Outlook(tokens=40.0, deviation=0.2, gains=[0.0, 0.15])

    def test_outlook_is_in_units_of_the_standardised_score(self) -> None:
        stats = config.Standardisation(mean=5.0, std=4.0)
        made = outlook({"polite": 1.0}, standardise=stats)
        assert made == Outlook(tokens=40.0, deviation=0.1, gains=[0.0, 0.075])

    def test_outlooks_of_several_rewards_add_as_uncorrelated_ones(self) -> None:
        made = outlook({"polite": 3.0, "warm": 4.0})
        assert made is not None
        assert made.deviation == pytest.approx(5 * 0.4)
        assert made.gains == pytest.approx([0.0, 5 * 0.3])

    def test_reward_of_weight_zero_needs_no_figures(self) -> None:
        expected = Outlook(tokens=40.0, deviation=0.4, gains=[0.0, 0.3])
        assert outlook({"polite": 1.0, "brevity": 0.0}) == expected
        assert outlook({"brevity": 0.0}) == Outlook(tokens=0.0, deviation=0.0, gains=[])

    def test_objective_with_an_unmeasured_reward_has_no_outlook(self) -> None:
        assert outlook({"polite": 1.0, "unmeasured": 1.0}) is None


class TestAuto:
    @pytest.mark.parametrize(
        ("weights", "kind", "detail"),
        [
            ({"unmeasured": 1.0}, "mean", "reward 'unmeasured' has none"),
            ({"polite": 1.0, "brevity": 0.5}, "mean", "reward 'brevity' has none"),
            ({"polite": 1.0}, "soft", "reward 'polite' has none"),
            ({"polite": 1.0, "warm": -0.5}, "mean", "reward 'warm' has a negative weight"),
        ],
    )
    def test_auto_is_refused_for_a_reward_that_it_cannot_be_computed_from(
        self, weights: dict[str, float], kind: str, detail: str
    ) -> None:
        sent = {"method": "blockwise_cd", "k": 2, "m": 2, "rewards": weights}
        policy = BlockwiseCDPolicy(**sent, continuation_gain="auto")
        with pytest.raises(PolicyError, match=detail) as caught:
            objective(policy, rewards(kind), None)
        assert caught.value.param == "alignment.continuation_gain"

    def test_auto_is_accepted_if_all_rewards_that_count_have_figures(self) -> None:
        policy = BlockwiseCDPolicy(
            method="blockwise_cd",
            k=2,
            m=2,
            rewards={"polite": 1.0, "brevity": 0.0},
            continuation_gain="auto",
        )
        made = objective(policy, rewards(), None).outlook(8)
        assert made is not None
        assert math.isclose(made.gains[1], 0.2)
