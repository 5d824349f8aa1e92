"""Blocks that end at strings and tokens, over HTTP: the report, and the fields they meet."""

from typing import Any

import httpx2
import pytest
from openai import BadRequestError, OpenAI

from tests.server.wire import PROMPT, complete, joined

ENDS = {"m": 12, "until": ["."], "report": "trace"}
STEPS = {"method": "blockwise_cd", "k": 2, **ENDS}
LONG = {"max_tokens": 64, "ignore_eos": True}


def chosen(answer: Any) -> list[dict[str, Any]]:
    """The selected candidates, in order."""
    decisions = answer.alignment["trace"]
    return [next(c for c in each["candidates"] if c["chosen"]) for each in decisions]


def check(step: dict[str, Any], last: bool) -> None:
    """Asserts that a block ends at its first full stop, or has 12 tokens."""
    if "." in step["text"]:
        assert step["until"] == "."
        assert step["text"].index(".") == len(step["text"]) - 1
        assert step["tokens"] <= 12
    else:
        assert "until" not in step
        assert step["tokens"] == 12 or last


@pytest.mark.parametrize(
    "policy",
    [
        STEPS,
        {**STEPS, "beam_width": 2},
        {**STEPS, "subtrees": 3},
        {**STEPS, "gate": {"threshold": 0.0, "scouts": 1}},
        {**STEPS, "selection": {"softmax": 0.1}, "kl_budget": 3.0},
        {**STEPS, "rewards": {"brevity": 1.0}},
        {"method": "cards", "r_star": 0.0, "max_draws": 4, "k": 2, **ENDS},
        {"method": "speculative_rejection", "n": 4, **ENDS},
    ],
    ids=["blocks", "beams", "subtrees", "gate", "budget", "without values", "cards", "rejection"],
)
def test_blocks_of_every_search_end_at_the_string(client: OpenAI, policy: dict[str, Any]) -> None:
    answer = complete(client, policy, **LONG)
    steps = chosen(answer)
    assert "".join(step["text"] for step in steps) == answer.choices[0].text
    assert sum(step["tokens"] for step in steps) == 64
    assert any("until" in step for step in steps)
    for decision in answer.alignment["trace"]:
        for candidate in decision["candidates"]:
            check(candidate, candidate["finish_reason"] is not None)
    assert complete(client, policy, **LONG).choices == answer.choices


def test_token_ends_a_block_like_its_string(client: OpenAI, http: httpx2.Client) -> None:
    body = {"model": "demo", "prompt": ".", "add_special_tokens": False}
    (token,) = http.post("/tokenize", json=body).json()["tokens"]
    by_string = complete(client, STEPS, **LONG)
    by_token = complete(client, {**STEPS, "until": [token]}, **LONG)
    assert by_token.choices == by_string.choices
    named = [[step.get("until") for step in chosen(answer)] for answer in (by_string, by_token)]
    assert named[1] == [None if end is None else token for end in named[0]]
    unused = complete(client, {**STEPS, "until": ["."], "report": "summary"}, min_tokens=40, **LONG)
    again = complete(client, {**STEPS, "until": [token]}, min_tokens=40, **LONG)
    assert again.choices == unused.choices


class TestSeveralTokens:
    """One candidate per block, so that its end changes no draw before it."""

    def blocks(self, client: OpenAI, until: str, m: int) -> list[dict[str, Any]]:
        policy = {**STEPS, "k": 1, "m": m, "until": [until]}
        return chosen(complete(client, policy, **LONG))

    def test_block_ends_with_the_token_that_completes_the_string(self, client: OpenAI) -> None:
        first = self.blocks(client, "never", 12)[0]["text"]
        pieces = first.split()
        until = f"{pieces[2][-2:]} {pieces[3][:2]}"
        block = self.blocks(client, until, 12)[0]
        assert block["until"] == until
        *before, last = block["text"].split()
        assert before == pieces[:3]
        assert pieces[3].startswith(last)

    @pytest.mark.parametrize("m", [1, 2, 3])
    def test_string_that_begins_in_a_full_block_ends_the_next(self, client: OpenAI, m: int) -> None:
        one, two, *_ = (block["text"] for block in self.blocks(client, "never", m))
        word = two.split()[0]
        until = f"{one[-2:]} {word[:2]}"
        first, second, *_ = self.blocks(client, until, m)
        assert (first["text"], first["tokens"], "until" in first) == (one, m, False)
        assert second["until"] == until
        assert second["tokens"] == 1


class TestOtherFields:
    def test_stop_of_the_client_still_ends_the_response(self, client: OpenAI) -> None:
        answer = complete(client, STEPS, stop=["."], **LONG)
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].stop_reason == "."
        assert "." not in answer.choices[0].text
        last = answer.alignment["trace"][-1]["candidates"]
        assert all("until" not in candidate for candidate in last if candidate["finish_reason"])

    def test_later_stop_does_not_keep_a_block_from_ending(self, client: OpenAI) -> None:
        plain = complete(client, {**STEPS, "k": 1}, **LONG)
        steps = chosen(plain)
        stop = steps[1]["text"].split()[-1].rstrip(".")
        end = plain.choices[0].text.index(stop)
        answer = complete(client, {**STEPS, "k": 1}, stop=[stop], **LONG)
        assert answer.choices[0].text == plain.choices[0].text[:end]

    def test_stop_on_the_token_that_ends_a_block_ends_the_response(
        self, client: OpenAI, http: httpx2.Client
    ) -> None:
        body = {"model": "demo", "prompt": ".", "add_special_tokens": False}
        (token,) = http.post("/tokenize", json=body).json()["tokens"]
        for until in (["."], [token]):
            policy = {**STEPS, "until": until}
            answer = complete(client, policy, stop_token_ids=[token], **LONG)
            assert answer.choices[0].finish_reason == "stop"
            assert answer.choices[0].stop_reason == token

    def test_rewards_read_no_part_of_a_stop_string_that_begins_in_the_block_before(
        self, client: OpenAI, http: httpx2.Client
    ) -> None:
        rewards = {"variety": 1.0}
        policy = {**STEPS, "k": 1, "until": ["never"], "rewards": rewards}
        first, second, *_ = (step["text"] for step in chosen(complete(client, policy, **LONG)))
        stop = first[len(first) // 3 :] + second[:2]
        answer = complete(client, policy, stop=[stop], **LONG)
        text = answer.choices[0].text
        assert text == first[: len(first) // 3]
        body = {"prompt": PROMPT, "responses": [text], "rewards": rewards}
        (scored,) = http.post("/v1/alignment/score", json=body).json()["scores"]
        assert answer.alignment["score"] == pytest.approx(scored["score"])

    def test_blocks_end_before_min_tokens(self, client: OpenAI) -> None:
        answer = complete(client, STEPS, max_tokens=64, min_tokens=60)
        assert answer.usage.completion_tokens >= 60
        assert any("until" in step for step in chosen(answer))

    def test_response_may_end_at_eos_and_at_max_tokens(self, client: OpenAI) -> None:
        reasons = set()
        for seed in range(8):
            answer = complete(client, STEPS, seed=seed, max_tokens=40)
            reasons.add(answer.choices[0].finish_reason)
            assert answer.usage.completion_tokens <= 40
        assert reasons == {"stop", "length"}

    def test_stream_has_a_block_per_step(self, client: OpenAI) -> None:
        answer = complete(client, STEPS, **LONG)
        chunks = list(complete(client, STEPS, stream=True, **LONG))
        assert joined(chunks) == answer.choices[0].text
        texts = [chunk.choices[0].text for chunk in chunks if chunk.choices]
        assert [text for text in texts if text] == [step["text"] for step in chosen(answer)]

    def test_logprobs_are_those_of_the_tokens(self, client: OpenAI) -> None:
        answer = complete(client, STEPS, logprobs=1, **LONG)
        assert len(answer.choices[0].logprobs.tokens) == 64
        assert answer.alignment["kl"]["estimator"] == "epsilon_n"

    def test_live_stream_shows_blocks_under_way(self, client: OpenAI) -> None:
        live = {**STEPS, "report": "live"}
        chunks = list(complete(client, live, stream=True, **LONG))
        assert joined(chunks) == complete(client, STEPS, **LONG).choices[0].text


def test_methods_without_blocks_refuse_ends_of_blocks(http: httpx2.Client) -> None:
    policy = {"method": "best_of_n", "n": 2, "until": ["."]}
    body = {"model": "demo", "prompt": PROMPT, "alignment": policy}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "alignment.until"


def test_token_outside_the_vocabulary_is_refused_before_any_work(client: OpenAI) -> None:
    words = ["is 2147483647", "token ids are 0 to "]
    for more in ({}, {"stream": True}):
        with pytest.raises(BadRequestError) as caught:
            complete(client, {**STEPS, "until": [".", 2**31 - 1]}, **more)
        assert caught.value.param == "alignment.until.1"
        assert all(word in caught.value.message for word in words)
