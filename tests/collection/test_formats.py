"""Rows of every format, and the counts of omitted ones."""

from typing import Any

import pytest

from cdserve.collection.formats import Filters, candidates, preference, sft, unpaired
from cdserve.collection.prompt_result import read_record

from .samples import CHAT, TEXT, record, response, result, traced

FORMS = pytest.mark.parametrize("prompt", [TEXT, CHAT], ids=["standard", "conversational"])
GOOD = response(" I love it.", 1.0)
FAIR = response(" It is fine.", 0.5)
BAD = response(" It broke.", -0.75)
CUT = response(" I love it and", 1.5, "length")


def completion(text: str, prompt: Any) -> Any:
    """A completion in TRL's form for the prompt."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


class TestPreference:
    @FORMS
    def test_pair_is_best_and_worst_response(self, prompt: Any) -> None:
        formatted = preference(result(FAIR, BAD, GOOD, prompt=prompt), Filters())
        assert formatted.rows == [
            {
                "prompt": prompt,
                "chosen": completion(" I love it.", prompt),
                "rejected": completion(" It broke.", prompt),
                "score_chosen": 1.0,
                "score_rejected": -0.75,
                "index": 3,
            }
        ]
        assert formatted.left_out == {}

    @pytest.mark.parametrize(("margin", "pairs"), [(0.0, 1), (1.7, 1), (1.75, 0), (2.0, 0)])
    def test_pair_within_margin_is_omitted(self, margin: float, pairs: int) -> None:
        """Only pairs further apart than the margin: 1.0 and -0.75 are 1.75 apart."""
        formatted = preference(result(GOOD, BAD), Filters(margin=margin))
        assert len(formatted.rows) == pairs
        assert formatted.left_out == ({} if pairs else {"within the margin": 1})

    def test_responses_with_equal_scores_give_no_pair(self) -> None:
        formatted = preference(result(GOOD, response(" Lovely.", 1.0)), Filters())
        assert (formatted.rows, formatted.left_out) == ((), {"within the margin": 1})

    @pytest.mark.parametrize("score", [1.0, 0.1])
    def test_responses_with_equal_texts_give_no_pair(self, score: float) -> None:
        """A judge may give one text two scores."""
        formatted = preference(result(GOOD, response(GOOD.text, score)), Filters())
        assert (formatted.rows, formatted.left_out) == ((), {"equal texts": 1})

    def test_first_response_wins_among_equal_scores(self) -> None:
        twice = result(BAD, GOOD, response(" Lovely.", 1.0), response(" Awful.", -0.75))
        (row,) = preference(twice, Filters()).rows
        assert (row["chosen"], row["rejected"]) == (GOOD.text, BAD.text)

    def test_single_response_gives_no_pair(self) -> None:
        formatted = preference(result(GOOD), Filters())
        assert (formatted.rows, formatted.left_out) == ((), {"fewer than two responses": 1})

    def test_ended_only_omits_cut_responses_from_pairs(self) -> None:
        (row,) = preference(result(CUT, GOOD, BAD), Filters()).rows
        assert row["chosen"] == CUT.text
        (row,) = preference(result(CUT, GOOD, BAD), Filters(ended_only=True)).rows
        assert row["chosen"] == GOOD.text
        formatted = preference(result(CUT, GOOD), Filters(ended_only=True))
        assert (formatted.rows, formatted.left_out) == ((), {"not ended": 1})


class TestSFT:
    @FORMS
    def test_completion_is_best_response(self, prompt: Any) -> None:
        formatted = sft(result(FAIR, GOOD, BAD, prompt=prompt), Filters())
        best = completion(" I love it.", prompt)
        assert formatted.rows == [{"prompt": prompt, "completion": best, "score": 1.0, "index": 3}]

    def test_best_response_below_minimum_score_is_omitted(self) -> None:
        assert sft(result(GOOD), Filters(min_score=1.0)).rows
        formatted = sft(result(GOOD), Filters(min_score=1.01))
        assert (formatted.rows, formatted.left_out) == ((), {"below the minimum score": 1})

    def test_ended_only_omits_cut_completions(self) -> None:
        (row,) = sft(result(CUT, FAIR), Filters(ended_only=True)).rows
        assert row["completion"] == FAIR.text
        formatted = sft(result(CUT), Filters(ended_only=True))
        assert (formatted.rows, formatted.left_out) == ((), {"not ended": 1})


class TestUnpaired:
    @FORMS
    def test_label_is_whether_score_exceeds_prompt_mean(self, prompt: Any) -> None:
        formatted = unpaired(result(FAIR, GOOD, BAD, prompt=prompt), Filters())  # mean 0.25
        assert formatted.rows == [
            {
                "prompt": prompt,
                "completion": completion(one.text, prompt),
                "label": label,
                "score": one.score,
                "index": 3,
            }
            for one, label in ((FAIR, True), (GOOD, True), (BAD, False))
        ]
        assert formatted.left_out == {}

    def test_response_at_the_mean_is_omitted(self) -> None:
        middle = result(response("a", 1.0), response("b", 0.5), response("c", 0.0))
        formatted = unpaired(middle, Filters())
        assert [row["completion"] for row in formatted.rows] == ["a", "c"]
        assert formatted.left_out == {"at the mean": 1}

    @pytest.mark.parametrize("count", [1, 3, 6, 7])
    def test_mean_of_equal_scores_is_exact(self, count: int) -> None:
        """Also where a sum of floats, divided, is another float."""
        formatted = unpaired(result(*[response("a", 0.1)] * count), Filters())
        assert (formatted.rows, formatted.left_out) == ([], {"at the mean": count})

    def test_label_is_whether_score_exceeds_threshold(self) -> None:
        formatted = unpaired(result(GOOD, FAIR, BAD), Filters(threshold=0.5))
        assert [row["label"] for row in formatted.rows] == [True, False, False]
        assert formatted.left_out == {}

    def test_ended_only_omits_cut_responses_before_the_mean(self) -> None:
        formatted = unpaired(result(CUT, GOOD, BAD), Filters(ended_only=True))  # mean 0.125
        assert [row["label"] for row in formatted.rows] == [True, False]
        assert formatted.left_out == {"not ended": 1}
        formatted = unpaired(result(CUT, CUT), Filters(ended_only=True))
        assert (formatted.rows, formatted.left_out) == ([], {"not ended": 2})


class TestCandidates:
    @FORMS
    def test_row_has_all_responses_and_settings(self, prompt: Any) -> None:
        (row,) = candidates(result(GOOD, BAD, prompt=prompt), {"model": "demo"}).rows
        assert row == {
            "index": 3,
            "prompt": prompt,
            "candidates": [
                {
                    "text": one.text,
                    "tokens": one.tokens,
                    "finish_reason": "stop",
                    "score": one.score,
                    "rewards": {"good": one.score},
                    "logprob": -1.5,
                    "chosen": False,
                }
                for one in (GOOD, BAD)
            ],
            "kl": {"bound": 0.4, "estimate": 0.3, "estimator": "epsilon_n"},
            "seed": 17,
            "model": "demo",
        }


class TestReadRecord:
    @pytest.mark.parametrize("method", ["best_of_n", "best_of_poisson", "rejection"])
    def test_candidates_of_whole_response_methods_are_responses(self, method: str) -> None:
        drawn = [traced(" a", 0.1), traced(" b", 0.7, chosen=True), traced(" c", 0.3)]
        formatted = read_record(record(method, drawn), ["good"], True)
        assert [one.text for one in formatted.responses] == [" a", " b", " c"]
        assert formatted.chosen.text == " b"
        assert (formatted.accepted, formatted.failed) == (None, False)

    @pytest.mark.parametrize("method", ["blockwise_cd", "cards", "speculative_rejection"])
    def test_chosen_blocks_are_joined_to_one_response(self, method: str) -> None:
        first = [traced(" a b", 0.1, chosen=True, finish_reason=None), traced(" x", 0.0)]
        last = [traced(" y", 0.2), traced(" c.", 0.7, chosen=True)]
        (formatted,) = read_record(record(method, first, last), ["good"], False).responses
        assert (formatted.text, formatted.tokens, formatted.logprob) == (" a b c.", 3, -4.0)
        assert (formatted.score, formatted.finish_reason, formatted.chosen) == (0.7, "stop", True)

    def test_logprob_is_none_if_a_block_has_none(self) -> None:
        first = [traced(" a", 0.1, chosen=True, finish_reason=None, logprob=None)]
        last = [traced(" b", 0.2, chosen=True)]
        formatted = read_record(record("cards", first, last), ["good"], False)
        assert formatted.chosen.logprob is None

    def test_kl_without_flag_and_accepted_are_read(self) -> None:
        drawn = [traced(" a", 0.1, chosen=True)]
        formatted = read_record(record("rejection", drawn, accepted=False), ["good"], True)
        assert formatted.kl == {"bound": 0.4, "estimate": 0.3, "estimator": "epsilon_n"}
        assert formatted.accepted is False
        assert candidates(formatted, {}).rows[0]["accepted"] is False

    def test_failed_reward_omits_prompt_from_trl_formats(self) -> None:
        drawn = [traced(" a", 0.1, chosen=True), traced(" b", 0.9)]
        formatted = read_record(record("best_of_n", drawn), ["good", "graded"], True)
        assert formatted.responses[0].rewards == {"good": 0.1, "graded": None}
        assert preference(formatted, Filters()).left_out == {"a reward failed": 1}
        assert sft(formatted, Filters()).left_out == {"a reward failed": 1}
        assert unpaired(formatted, Filters()).left_out == {"a reward failed": 2}
        assert len(candidates(formatted, {}).rows[0]["candidates"]) == 2
