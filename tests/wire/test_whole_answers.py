"""Blocks by rewards of whole answers: look-ahead, and final rewards, over HTTP."""

from typing import Any

import httpx2
import pytest
from openai import BadRequestError, OpenAI

from tests.server.wire import BLOCKWISE, PROMPT, check_refused, complete, joined

TRACE = {"report": "trace"}
AHEAD = {**BLOCKWISE, "k": 2, **TRACE, "rewards": {"sentiment_gold": 1.0}, "lookahead": 24}
TWO = {**BLOCKWISE, "k": 3, **TRACE, "rewards": {"sentiment": 1.0}}
FINAL = {**TWO, "final_rewards": {"sentiment_gold": 1.0}}
LONG = {"max_tokens": 40, "ignore_eos": True}


def traced(answer: Any) -> list[list[dict[str, Any]]]:
    """The candidates of every decision."""
    return [decision["candidates"] for decision in answer.alignment["trace"]]


def gold(http: httpx2.Client, text: str) -> float:
    """``sentiment_gold`` of a whole answer to the prompt."""
    body = {"prompt": PROMPT, "responses": [text], "rewards": {"sentiment_gold": 1.0}}
    score: float = http.post("/v1/alignment/score", json=body).json()["scores"][0]["score"]
    return score


class TestLookAhead:
    def test_block_has_the_score_of_its_greedy_continuation(
        self, client: OpenAI, http: httpx2.Client
    ) -> None:
        answer = complete(client, AHEAD, **LONG)
        before = ""
        for candidates in traced(answer)[:2]:
            for candidate in candidates:
                text = before + candidate["text"]
                rest = {"prompt": PROMPT + text, "temperature": 0, "max_tokens": 24}
                left = 40 - 16 * (1 + bool(before))
                rest |= {"max_tokens": min(24, left), "ignore_eos": True}
                rollout = complete(client, **rest).choices[0].text
                assert candidate["score"] == pytest.approx(gold(http, text + rollout), abs=1e-6)
            before += next(one["text"] for one in candidates if one["chosen"])
        assert answer.alignment["score"] == pytest.approx(gold(http, answer.choices[0].text))

    def test_rollouts_are_counted_and_not_returned(self, client: OpenAI) -> None:
        answer = complete(client, AHEAD, **LONG)
        assert answer.usage.completion_tokens == 40
        assert [len(candidates) for candidates in traced(answer)] == [2, 2, 2]
        assert answer.alignment["candidate_tokens"] == 2 * 40 + 2 * (24 + 8)
        assert answer.alignment["candidates"] == 6

    def test_first_block_is_drawn_as_without_look_ahead(self, client: OpenAI) -> None:
        plain = complete(client, {**TWO, "k": 2}, **LONG)
        texts = [[one["text"] for one in each] for each in traced(complete(client, AHEAD, **LONG))]
        assert texts[0] == [one["text"] for one in traced(plain)[0]]

    @pytest.mark.parametrize(
        "more",
        [
            {"until": ["."], "subtrees": 2},
            {"beam_width": 2},
            {"gate": {"threshold": 9.0, "scouts": 1}},
            {"rewards": {"sentiment": 1.0}},
            {"rewards": {"fluent": 0.1, "sentiment_gold": 1.0}},
            {"proposal": {"method": "tokenwise_cd", "beta": 0.5, "rewards": {"sentiment": 1.0}}},
        ],
        ids=["subtrees", "beams", "gate", "values", "likelihoods", "tilt"],
    )
    def test_look_ahead_answers_again_with_the_same_seed(
        self, client: OpenAI, more: dict[str, Any]
    ) -> None:
        one, two = (complete(client, {**AHEAD, **more}, **LONG) for _ in range(2))
        assert one.choices == two.choices
        assert one.alignment["candidate_tokens"] > sum(
            candidate["tokens"] for candidates in traced(one) for candidate in candidates
        )
        assert joined(list(complete(client, {**AHEAD, **more}, stream=True, **LONG))) == (
            one.choices[0].text
        )

    def test_deadline_ends_an_answer_with_look_ahead(self, client: OpenAI) -> None:
        answer = complete(client, {**AHEAD, "deadline_ms": 1}, **LONG)
        assert answer.choices[0].finish_reason == "length"
        assert answer.alignment["deadline"]["passed"] is True

    def test_rollouts_count_towards_the_limit(self, client: OpenAI) -> None:
        policy = {**AHEAD, "k": 8, "m": 32, "lookahead": 512}
        with pytest.raises(BadRequestError) as refused:
            complete(client, policy, max_tokens=512)
        assert refused.value.param == "max_tokens"
        words = f"8 candidates and their rollouts would be {8 * (512 + 3840)} tokens"
        assert words in refused.value.message

    def test_reward_of_whole_answers_without_look_ahead_is_refused(self, client: OpenAI) -> None:
        policy = {key: value for key, value in AHEAD.items() if key != "lookahead"}
        param = "alignment.rewards.sentiment_gold"
        check_refused(client, policy, param, ["scores prefixes", "'lookahead'", "'final_rewards'"])


class TestFinalRewards:
    def test_ended_candidates_are_compared_by_the_final_rewards(
        self, client: OpenAI, http: httpx2.Client
    ) -> None:
        for seed in range(4):
            answer = complete(client, FINAL, seed=seed, **LONG)
            *going, last = traced(answer)
            for candidates in going:
                assert all({*one["rewards"]} == {"sentiment"} for one in candidates)
                best = max(one["score"] for one in candidates)
                assert [one["score"] for one in candidates if one["chosen"]] == [best]
            assert all({*one["rewards"]} == {"sentiment", "sentiment_gold"} for one in last)
            (chosen,) = (one for one in last if one["chosen"])
            assert chosen["score"] == max(one["score"] for one in last)
            assert (
                answer.alignment["score"] == chosen["score"] == chosen["rewards"]["sentiment_gold"]
            )
            assert chosen["score"] == pytest.approx(gold(http, answer.choices[0].text), abs=1e-6)
            assert answer.alignment["kl"]["estimator"] == "bound"

    def test_answer_that_ends_early_has_its_final_score(
        self, client: OpenAI, http: httpx2.Client
    ) -> None:
        for seed in range(6):
            answer = complete(client, FINAL, seed=seed, max_tokens=160)
            found = pytest.approx(gold(http, answer.choices[0].text), abs=1e-6)
            assert answer.alignment["score"] == found
            assert {*answer.alignment["rewards"]} == {"sentiment", "sentiment_gold"}

    @pytest.mark.parametrize(
        "policy",
        [
            {**FINAL, "beam_width": 2, "k": 2},
            {**FINAL, "subtrees": 2, "k": 2, "until": ["."]},
            {**FINAL, "k": 2, "lookahead": 16},
            {
                **{"method": "speculative_rejection", "n": 4, "m": 16, **TRACE},
                "final_rewards": {"sentiment_gold": 1.0},
            },
        ],
        ids=["beams", "subtrees", "look-ahead", "rejection"],
    )
    def test_last_choice_is_by_the_final_rewards(
        self, client: OpenAI, http: httpx2.Client, policy: dict[str, Any]
    ) -> None:
        answer = complete(client, policy, **LONG)
        ends = [one for one in traced(answer)[-1] if one["finish_reason"]]
        assert answer.alignment["score"] == max(one["score"] for one in ends)
        assert answer.alignment["score"] == pytest.approx(
            gold(http, answer.choices[0].text), abs=1e-6
        )
        assert complete(client, policy, **LONG).choices == answer.choices

    @pytest.mark.parametrize(
        ("policy", "param", "words"),
        [
            ({**TWO, "final_rewards": {"none": 1.0}}, "alignment.final_rewards", ["'none'"]),
            ({**TWO, "final_rewards": {}}, "alignment.final_rewards", ["at least 1"]),
            (
                {**FINAL, "gate": {"threshold": 0.0}},
                "alignment.gate",
                ["cannot be combined with 'final_rewards'"],
            ),
            (
                {"method": "best_of_n", "n": 2, "final_rewards": {"sentiment": 1.0}},
                "alignment.final_rewards",
                ["is not known"],
            ),
            ({**AHEAD, "lookahead": 0}, "alignment.lookahead", ["0", "at least 1"]),
        ],
    )
    def test_invalid_fields_are_refused(
        self, client: OpenAI, policy: dict[str, Any], param: str, words: list[str]
    ) -> None:
        check_refused(client, policy, param, words)
