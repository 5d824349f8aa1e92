"""The report: its shape on the wire and the numbers in it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from cdserve.decoders import Candidate, Decision, Score
from cdserve.report import merged, report

SHAPE = {
    "method": str,
    "score": float,
    "rewards": dict,
    "scores": {"mean": float, "max": float, "min": float},
    "decisions": int,
    "candidates": int,
    "candidate_tokens": int,
    "ties": int,
    "kl": {"bound": float, "estimate": float, "estimator": str, "flag": str},
}


def decision(
    *totals: float,
    chosen: int = 0,
    tokens: int = 2,
    bound: float = 0.5,
    estimate: float = 0.25,
    estimator: str = "epsilon_n",
) -> Decision:
    return Decision(
        candidates=[
            Candidate(
                token_ids=tuple(range(tokens + i)),
                finish_reason="stop" if i else None,
                text=f"text {i}",
            )
            for i in range(len(totals))
        ],
        scores=[Score(total, {"a": total / 2, "b": total / 4}) for total in totals],
        chosen=chosen,
        tie=len(set(totals)) < len(totals),
        kl_bound=bound,
        kl_estimate=estimate,
        kl_estimator=estimator,
    )


def shape(made: Any) -> Any:
    return {k: shape(v) for k, v in made.items()} if isinstance(made, dict) else type(made)


class TestReport:
    DECISIONS = (
        decision(1.0, 2.0, 6.0, chosen=2),
        decision(4.0, 4.0, -1.0, chosen=0, bound=0.75, estimate=0.5),
    )

    @pytest.fixture
    def made(self) -> dict[str, Any]:
        return report("blockwise_cd", self.DECISIONS, trace=False)

    def test_shape(self, made: dict[str, Any]) -> None:
        rewards = made["rewards"]
        assert shape({**made, "rewards": None}) == {**SHAPE, "rewards": type(None)}
        assert shape(rewards) == {"a": float, "b": float}
        assert list(made) == list(SHAPE)

    def test_it_is_json(self, made: dict[str, Any]) -> None:
        assert json.loads(json.dumps(made, allow_nan=False)) == made

    def test_score_and_rewards_are_those_of_the_returned_text(self, made: dict[str, Any]) -> None:
        assert made["score"] == 4.0
        assert made["rewards"] == {"a": 2.0, "b": 1.0}

    def test_scores_are_over_all_candidates(self, made: dict[str, Any]) -> None:
        assert made["scores"] == {"mean": pytest.approx(16 / 6), "max": 6.0, "min": -1.0}

    def test_counts(self, made: dict[str, Any]) -> None:
        assert made["decisions"] == 2
        assert made["candidates"] == 6
        assert made["candidate_tokens"] == 2 * (2 + 3 + 4)
        assert made["ties"] == 1

    def test_kl_is_summed_over_decisions(self, made: dict[str, Any]) -> None:
        assert made["kl"] == {
            "bound": 1.25,
            "estimate": 0.75,
            "estimator": "epsilon_n",
            "flag": "ok",
        }

    def test_the_estimator_is_the_selection_rule_s(self) -> None:
        one = decision(1.0, 2.0, estimator="selection_entropy")
        assert report("best_of_n", [one], trace=False)["kl"]["estimator"] == "selection_entropy"

    @pytest.mark.parametrize(("count", "flag"), [(15, "ok"), (16, "inspect"), (30, "high")])
    def test_flag_is_that_of_the_bound(self, count: int, flag: str) -> None:
        made = report("blockwise_cd", [decision(1.0, estimate=0.0)] * count, trace=False)
        assert made["kl"]["flag"] == flag


class TestTrace:
    def test_every_decision_lists_its_candidates(self) -> None:
        made = report("blockwise_cd", TestReport.DECISIONS, trace=True)
        assert list(made) == [*SHAPE, "trace"]
        assert [len(traced["candidates"]) for traced in made["trace"]] == [3, 3]
        assert [traced["kl"]["bound"] for traced in made["trace"]] == [
            decision.kl_bound for decision in TestReport.DECISIONS
        ]
        assert made["trace"][0]["candidates"][1:] == [
            {
                "text": "text 1",
                "tokens": 3,
                "finish_reason": "stop",
                "logprob": None,
                "score": 2.0,
                "rewards": {"a": 1.0, "b": 0.5},
                "chosen": False,
            },
            {
                "text": "text 2",
                "tokens": 4,
                "finish_reason": "stop",
                "logprob": None,
                "score": 6.0,
                "rewards": {"a": 3.0, "b": 1.5},
                "chosen": True,
            },
        ]

    def test_one_candidate_a_decision_is_chosen(self) -> None:
        made = report("blockwise_cd", TestReport.DECISIONS, trace=True)
        assert [[c["chosen"] for c in traced["candidates"]] for traced in made["trace"]] == [
            [False, False, True],
            [True, False, False],
        ]

    def test_the_summary_has_none(self) -> None:
        summary = report("blockwise_cd", TestReport.DECISIONS, trace=False)
        traced = report("blockwise_cd", TestReport.DECISIONS, trace=True)
        assert {k: v for k, v in traced.items() if k != "trace"} == summary


class TestMerged:
    CHOICES = (
        report("best_of_n", [decision(1.0, 3.0, chosen=1, bound=9.0)], trace=False),
        report("best_of_n", [decision(-1.0, -1.0), decision(-2.0, 0.0)], trace=False),
    )

    def test_one_choice_is_itself(self) -> None:
        assert merged(self.CHOICES[:1]) == self.CHOICES[0]

    def test_shape(self) -> None:
        made = merged(self.CHOICES)
        assert list(made) == [*SHAPE, "choices"]
        assert made["choices"] == list(self.CHOICES)

    def test_scores_are_averaged(self) -> None:
        made = merged(self.CHOICES)
        assert made["score"] == 0.5
        assert made["rewards"] == {"a": 0.25, "b": 0.125}
        assert made["scores"] == {"mean": 0.5, "max": 3.0, "min": -2.0}

    def test_counts_are_summed(self) -> None:
        made = merged(self.CHOICES)
        assert (made["decisions"], made["candidates"], made["ties"]) == (3, 6, 1)
        assert made["candidate_tokens"] == sum(c["candidate_tokens"] for c in self.CHOICES)

    def test_kl_is_that_of_the_farthest_choice(self) -> None:
        assert merged(self.CHOICES)["kl"] == self.CHOICES[0]["kl"]
        assert merged(self.CHOICES[::-1])["kl"]["flag"] == "inspect"


class TestFailedRewards:
    """Rewards that decisions went without."""

    def one(self, failed: tuple[str, ...]) -> dict[str, Any]:
        good, bad = decision(1.0, 2.0), decision(1.0, 2.0)
        scores = [Score(score.total, {"a": 1.0}, failed) for score in bad.scores]
        return report("m", [good, replace(bad, scores=scores)], trace=False)

    def test_decisions_are_counted_by_reward(self) -> None:
        made = self.one(("b",))
        assert made["failed"] == {"b": 1}
        assert made["rewards"] == {"a": 1.0}

    def test_choices_are_summed_and_averaged_over_those_that_have_it(self) -> None:
        other = report("m", [decision(1.0, 2.0)], trace=False)
        made = merged([self.one(("b",)), other, self.one(("b",))])
        assert made["failed"] == {"b": 2}
        assert made["rewards"] == {"a": pytest.approx((1 + 0.5 + 1) / 3), "b": 0.25}
        assert "failed" not in merged([other, other])
