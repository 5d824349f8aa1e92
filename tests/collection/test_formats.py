"""Rows of every format, and what is left out and counted."""

from typing import Any

import pytest

from cdserve.collection.answered import read_answer
from cdserve.collection.formats import Filters, candidates, preference, sft, unpaired

from .made import CHAT, TEXT, answered, record, response, traced

FORMS = pytest.mark.parametrize("prompt", [TEXT, CHAT], ids=["standard", "conversational"])
GOOD = response(" I love it.", 1.0)
FAIR = response(" It is fine.", 0.5)
BAD = response(" It broke.", -0.75)
CUT = response(" I love it and", 1.5, "length")


def said(text: str, prompt: Any) -> Any:
    """A completion as TRL has it in a prompt's form."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


class TestPreference:
    @FORMS
    def test_best_against_worst(self, prompt: Any) -> None:
        made = preference(answered(FAIR, BAD, GOOD, prompt=prompt), Filters())
        assert made.rows == [
            {
                "prompt": prompt,
                "chosen": said(" I love it.", prompt),
                "rejected": said(" It broke.", prompt),
                "score_chosen": 1.0,
                "score_rejected": -0.75,
                "index": 3,
            }
        ]
        assert made.left_out == {}

    @pytest.mark.parametrize(("margin", "pairs"), [(0.0, 1), (1.7, 1), (1.75, 0), (2.0, 0)])
    def test_margin(self, margin: float, pairs: int) -> None:
        """Only pairs further apart than the margin: 1.0 and -0.75 are 1.75 apart."""
        made = preference(answered(GOOD, BAD), Filters(margin=margin))
        assert len(made.rows) == pairs
        assert made.left_out == ({} if pairs else {"within the margin": 1})

    def test_equal_scores_make_no_pair(self) -> None:
        made = preference(answered(GOOD, response(" Lovely.", 1.0)), Filters())
        assert (made.rows, made.left_out) == ((), {"within the margin": 1})

    @pytest.mark.parametrize("score", [1.0, 0.1])
    def test_equal_texts_make_no_pair(self, score: float) -> None:
        """A judge may give one text two scores."""
        made = preference(answered(GOOD, response(GOOD.text, score)), Filters())
        assert (made.rows, made.left_out) == ((), {"equal texts": 1})

    def test_of_equal_scores_the_first_is_taken(self) -> None:
        twice = answered(BAD, GOOD, response(" Lovely.", 1.0), response(" Awful.", -0.75))
        (row,) = preference(twice, Filters()).rows
        assert (row["chosen"], row["rejected"]) == (GOOD.text, BAD.text)

    def test_one_response_makes_no_pair(self) -> None:
        made = preference(answered(GOOD), Filters())
        assert (made.rows, made.left_out) == ((), {"fewer than two responses": 1})

    def test_responses_that_were_cut(self) -> None:
        (row,) = preference(answered(CUT, GOOD, BAD), Filters()).rows
        assert row["chosen"] == CUT.text
        (row,) = preference(answered(CUT, GOOD, BAD), Filters(ended_only=True)).rows
        assert row["chosen"] == GOOD.text
        made = preference(answered(CUT, GOOD), Filters(ended_only=True))
        assert (made.rows, made.left_out) == ((), {"not ended": 1})


class TestSFT:
    @FORMS
    def test_the_best(self, prompt: Any) -> None:
        made = sft(answered(FAIR, GOOD, BAD, prompt=prompt), Filters())
        completion = said(" I love it.", prompt)
        assert made.rows == [{"prompt": prompt, "completion": completion, "score": 1.0, "index": 3}]

    def test_minimum_score(self) -> None:
        assert sft(answered(GOOD), Filters(min_score=1.0)).rows
        made = sft(answered(GOOD), Filters(min_score=1.01))
        assert (made.rows, made.left_out) == ((), {"below the minimum score": 1})

    def test_responses_that_were_cut(self) -> None:
        (row,) = sft(answered(CUT, FAIR), Filters(ended_only=True)).rows
        assert row["completion"] == FAIR.text
        made = sft(answered(CUT), Filters(ended_only=True))
        assert (made.rows, made.left_out) == ((), {"not ended": 1})


class TestUnpaired:
    @FORMS
    def test_above_the_prompt_s_mean_or_below(self, prompt: Any) -> None:
        made = unpaired(answered(FAIR, GOOD, BAD, prompt=prompt), Filters())  # mean 0.25
        assert made.rows == [
            {
                "prompt": prompt,
                "completion": said(one.text, prompt),
                "label": label,
                "score": one.score,
                "index": 3,
            }
            for one, label in ((FAIR, True), (GOOD, True), (BAD, False))
        ]
        assert made.left_out == {}

    def test_at_the_mean(self) -> None:
        middle = answered(response("a", 1.0), response("b", 0.5), response("c", 0.0))
        made = unpaired(middle, Filters())
        assert [row["completion"] for row in made.rows] == ["a", "c"]
        assert made.left_out == {"at the mean": 1}

    @pytest.mark.parametrize("count", [1, 3, 6, 7])
    def test_equal_scores_are_at_their_mean(self, count: int) -> None:
        """Also where a sum of floats, divided, is another float."""
        made = unpaired(answered(*[response("a", 0.1)] * count), Filters())
        assert (made.rows, made.left_out) == ([], {"at the mean": count})

    def test_a_threshold(self) -> None:
        made = unpaired(answered(GOOD, FAIR, BAD), Filters(threshold=0.5))
        assert [row["label"] for row in made.rows] == [True, False, False]
        assert made.left_out == {}

    def test_responses_that_were_cut(self) -> None:
        made = unpaired(answered(CUT, GOOD, BAD), Filters(ended_only=True))  # mean 0.125
        assert [row["label"] for row in made.rows] == [True, False]
        assert made.left_out == {"not ended": 1}
        made = unpaired(answered(CUT, CUT), Filters(ended_only=True))
        assert (made.rows, made.left_out) == ([], {"not ended": 2})


class TestCandidates:
    @FORMS
    def test_all_that_is_known(self, prompt: Any) -> None:
        (row,) = candidates(answered(GOOD, BAD, prompt=prompt), {"model": "demo"}).rows
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


class TestAnswers:
    """What is read out of the journal."""

    @pytest.mark.parametrize("method", ["best_of_n", "best_of_poisson", "rejection"])
    def test_all_candidates_are_whole(self, method: str) -> None:
        drawn = [traced(" a", 0.1), traced(" b", 0.7, chosen=True), traced(" c", 0.3)]
        made = read_answer(record(method, drawn), ["good"])
        assert [one.text for one in made.responses] == [" a", " b", " c"]
        assert made.chosen.text == " b"
        assert (made.accepted, made.failed) == (None, False)

    @pytest.mark.parametrize("method", ["blockwise_cd", "cards", "speculative_rejection"])
    def test_blocks_taken_are_one_response(self, method: str) -> None:
        first = [traced(" a b", 0.1, chosen=True, finish_reason=None), traced(" x", 0.0)]
        last = [traced(" y", 0.2), traced(" c.", 0.7, chosen=True)]
        (made,) = read_answer(record(method, first, last), ["good"]).responses
        assert (made.text, made.tokens, made.logprob) == (" a b c.", 3, -4.0)
        assert (made.score, made.finish_reason, made.chosen) == (0.7, "stop", True)

    def test_a_response_without_a_block_s_logprob_has_none(self) -> None:
        first = [traced(" a", 0.1, chosen=True, finish_reason=None, logprob=None)]
        made = read_answer(record("cards", first, [traced(" b", 0.2, chosen=True)]), ["good"])
        assert made.chosen.logprob is None

    def test_the_kl_and_whether_it_was_accepted(self) -> None:
        drawn = [traced(" a", 0.1, chosen=True)]
        made = read_answer(record("rejection", drawn, accepted=False), ["good"])
        assert made.kl == {"bound": 0.4, "estimate": 0.3, "estimator": "epsilon_n"}
        assert made.accepted is False
        assert candidates(made, {}).rows[0]["accepted"] is False

    def test_a_reward_that_failed_leaves_its_prompt_out(self) -> None:
        drawn = [traced(" a", 0.1, chosen=True), traced(" b", 0.9)]
        made = read_answer(record("best_of_n", drawn), ["good", "graded"])
        assert made.responses[0].rewards == {"good": 0.1, "graded": None}
        assert preference(made, Filters()).left_out == {"a reward failed": 1}
        assert sft(made, Filters()).left_out == {"a reward failed": 1}
        assert unpaired(made, Filters()).left_out == {"a reward failed": 2}
        assert len(candidates(made, {}).rows[0]["candidates"]) == 2
