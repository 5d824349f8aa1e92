"""The report: keys, types and numbers."""

import json
from dataclasses import replace
from typing import Any

import pytest

from cdserve.decoders import Candidate, Decision, Score
from cdserve.decoders.candidate import AnswerClass, Votes
from cdserve.report import UsedSampling, merged, report

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


def shape(result: Any) -> Any:
    return {k: shape(v) for k, v in result.items()} if isinstance(result, dict) else type(result)


class TestReport:
    DECISIONS = (
        decision(1.0, 2.0, 6.0, chosen=2),
        decision(4.0, 4.0, -1.0, chosen=0, bound=0.75, estimate=0.5),
    )

    @pytest.fixture
    def result(self) -> dict[str, Any]:
        return report("blockwise_cd", self.DECISIONS, trace=False)

    def test_report_has_the_documented_keys_and_types(self, result: dict[str, Any]) -> None:
        rewards = result["rewards"]
        assert shape({**result, "rewards": None}) == {**SHAPE, "rewards": type(None)}
        assert shape(rewards) == {"a": float, "b": float}
        assert list(result) == list(SHAPE)

    def test_report_survives_json(self, result: dict[str, Any]) -> None:
        assert json.loads(json.dumps(result, allow_nan=False)) == result

    def test_score_and_rewards_belong_to_the_returned_text(self, result: dict[str, Any]) -> None:
        assert result["score"] == 4.0
        assert result["rewards"] == {"a": 2.0, "b": 1.0}

    def test_scores_cover_all_candidates(self, result: dict[str, Any]) -> None:
        assert result["scores"] == {"mean": pytest.approx(16 / 6), "max": 6.0, "min": -1.0}

    def test_report_counts_decisions_candidates_tokens_and_ties(
        self, result: dict[str, Any]
    ) -> None:
        assert result["decisions"] == 2
        assert result["candidates"] == 6
        assert result["candidate_tokens"] == 2 * (2 + 3 + 4)
        assert result["ties"] == 1

    def test_kl_is_summed_over_decisions(self, result: dict[str, Any]) -> None:
        assert result["kl"] == {
            "bound": 1.25,
            "estimate": 0.75,
            "estimator": "epsilon_n",
            "flag": "ok",
        }

    def test_estimator_comes_from_the_selection_rule(self) -> None:
        one = decision(1.0, 2.0, estimator="selection_entropy")
        assert report("best_of_n", [one], trace=False)["kl"]["estimator"] == "selection_entropy"

    @pytest.mark.parametrize(("count", "flag"), [(15, "ok"), (16, "inspect"), (30, "high")])
    def test_flag_follows_the_bound(self, count: int, flag: str) -> None:
        result = report("blockwise_cd", [decision(1.0, estimate=0.0)] * count, trace=False)
        assert result["kl"]["flag"] == flag


class TestEnds:
    """Counts of the decisions between ended and unfinished candidates."""

    MIXED = decision(1.0, 2.0, 6.0, chosen=2)
    LIVE_WINS = decision(4.0, 3.0)
    ALL_LIVE = decision(1.0)

    def test_ends_count_decisions_between_ended_and_unfinished_candidates(self) -> None:
        decisions = [self.MIXED, self.ALL_LIVE, self.LIVE_WINS]
        result = report("blockwise_cd", decisions, trace=False, ends=True)
        assert list(result) == [*SHAPE, "ends"]
        assert result["ends"] == {"decisions": 2, "candidates": 5, "ended": 3, "selected": 1}

    def test_decision_between_ended_candidates_only_does_not_count(self) -> None:
        candidates = [replace(c, finish_reason="length") for c in self.MIXED.candidates]
        last = replace(self.MIXED, candidates=candidates)
        result = report("blockwise_cd", [last], trace=False, ends=True)
        assert result["ends"] == {"decisions": 0, "candidates": 0, "ended": 0, "selected": 0}

    def test_merged_ends_are_sums(self) -> None:
        each = report("blockwise_cd", [self.MIXED, self.LIVE_WINS], trace=False, ends=True)
        expected = {"decisions": 4, "candidates": 10, "ended": 6, "selected": 2}
        assert merged([each, each])["ends"] == expected


class TestVotes:
    VOTES = Votes([AnswerClass("7", 2, 2.5), AnswerClass("8", 1, 0.5)], 1)
    VOTED = replace(decision(1.0, 2.0), votes=VOTES)

    def test_votes_list_the_answers_and_the_responses_without_one(self) -> None:
        result = report("best_of_n", [self.VOTED], trace=False)
        assert list(result) == [*SHAPE, "votes"]
        assert result["votes"] == {
            "classes": [
                {"answer": "7", "count": 2, "weight": 2.5},
                {"answer": "8", "count": 1, "weight": 0.5},
            ],
            "unanswered": 1,
        }

    def test_trace_of_a_vote_has_the_answer_of_each_candidate(self) -> None:
        candidates = [replace(self.VOTED.candidates[0], answer="7"), self.VOTED.candidates[1]]
        voted = replace(self.VOTED, candidates=candidates)
        ((traced,), (other,)) = (
            report("best_of_n", [each], trace=True)["trace"] for each in (voted, decision(1.0))
        )
        assert [each["answer"] for each in traced["candidates"]] == ["7", None]
        assert "answer" not in other["candidates"][0]

    def test_merged_votes_are_sums_by_answer(self) -> None:
        other = replace(self.VOTED, votes=Votes([AnswerClass("8", 3, 3.0)], 0))
        reports = [report("best_of_n", [each], trace=False) for each in (self.VOTED, other)]
        assert merged(reports)["votes"] == {
            "classes": [
                {"answer": "8", "count": 4, "weight": 3.5},
                {"answer": "7", "count": 2, "weight": 2.5},
            ],
            "unanswered": 1,
        }


class TestTrace:
    def test_trace_lists_the_candidates_of_every_decision(self) -> None:
        result = report("blockwise_cd", TestReport.DECISIONS, trace=True)
        assert list(result) == [*SHAPE, "trace"]
        assert [len(traced["candidates"]) for traced in result["trace"]] == [3, 3]
        assert [traced["kl"]["bound"] for traced in result["trace"]] == [
            decision.kl_bound for decision in TestReport.DECISIONS
        ]
        assert result["trace"][0]["candidates"][1:] == [
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

    def test_trace_marks_one_chosen_candidate_per_decision(self) -> None:
        result = report("blockwise_cd", TestReport.DECISIONS, trace=True)
        assert [[c["chosen"] for c in traced["candidates"]] for traced in result["trace"]] == [
            [False, False, True],
            [True, False, False],
        ]

    def test_report_without_trace_is_otherwise_equal(self) -> None:
        summary = report("blockwise_cd", TestReport.DECISIONS, trace=False)
        traced = report("blockwise_cd", TestReport.DECISIONS, trace=True)
        assert {k: v for k, v in traced.items() if k != "trace"} == summary


class TestMerged:
    CHOICES = (
        report("best_of_n", [decision(1.0, 3.0, chosen=1, bound=9.0)], trace=False),
        report("best_of_n", [decision(-1.0, -1.0), decision(-2.0, 0.0)], trace=False),
    )

    def test_merged_returns_a_single_report_unchanged(self) -> None:
        assert merged(self.CHOICES[:1]) == self.CHOICES[0]

    def test_merged_report_has_the_documented_keys_and_the_choices(self) -> None:
        result = merged(self.CHOICES)
        assert list(result) == [*SHAPE, "choices"]
        assert result["choices"] == list(self.CHOICES)

    def test_merged_scores_are_averages(self) -> None:
        result = merged(self.CHOICES)
        assert result["score"] == 0.5
        assert result["rewards"] == {"a": 0.25, "b": 0.125}
        assert result["scores"] == {"mean": 0.5, "max": 3.0, "min": -2.0}

    def test_merged_counts_are_sums(self) -> None:
        result = merged(self.CHOICES)
        assert (result["decisions"], result["candidates"], result["ties"]) == (3, 6, 1)
        assert result["candidate_tokens"] == sum(c["candidate_tokens"] for c in self.CHOICES)

    def test_merged_kl_is_that_of_the_choice_with_the_largest_bound(self) -> None:
        assert merged(self.CHOICES)["kl"] == self.CHOICES[0]["kl"]
        assert merged(self.CHOICES[::-1])["kl"]["flag"] == "inspect"


class TestSampling:
    USED = UsedSampling(temperature=0.7, top_p=0.9, top_k=None, min_p=0.0, seed=3)

    def test_sampling_of_the_policy_is_in_the_report_and_in_the_merged_report(self) -> None:
        each = report("best_of_n", [decision(1.0, 2.0)], trace=False, sampling=self.USED)
        assert each["sampling"] == merged([each, each])["sampling"] == self.USED


class TestFailedRewards:
    """Reports of responses with decisions that lack a failed reward."""

    def report_with(self, failed: tuple[str, ...]) -> dict[str, Any]:
        good, bad = decision(1.0, 2.0), decision(1.0, 2.0)
        scores = [Score(score.total, {"a": 1.0}, failed) for score in bad.scores]
        return report("m", [good, replace(bad, scores=scores)], trace=False)

    def test_failed_counts_decisions_by_reward(self) -> None:
        result = self.report_with(("b",))
        assert result["failed"] == {"b": 1}
        assert result["rewards"] == {"a": 1.0}

    def test_merged_reward_is_the_average_over_the_choices_that_have_it(self) -> None:
        other = report("m", [decision(1.0, 2.0)], trace=False)
        result = merged([self.report_with(("b",)), other, self.report_with(("b",))])
        assert result["failed"] == {"b": 2}
        assert result["rewards"] == {"a": pytest.approx((1 + 0.5 + 1) / 3), "b": 0.25}
        assert "failed" not in merged([other, other])
