"""First tokens of a block, drawn with the values of the block before, change no answer.

The engine draws them itself where log-probabilities are asked for.
"""

from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI

from tests.waiting import until

from .served import Served
from .wire import BLOCKWISE, chat, complete

SAMPLING: dict[str, dict[str, Any]] = {
    "whole": {},
    "top_p": {"top_p": 0.8},
    "all": {"temperature": 1.3, "top_p": 0.9, "top_k": 40, "min_p": 0.02},
}
BY_TOKEN: dict[str, Any] = {**BLOCKWISE, "k": 2, "m": 1, "report": "trace"}


def check_same(ask: Callable[..., Any]) -> Any:
    """Asserts that log-probabilities change nothing; returns the answer without them."""
    answers = ask(), ask(logprobs=0)
    first, other = (
        [
            [(c["text"], c["chosen"], pytest.approx(c["score"], abs=1e-5)) for c in d["candidates"]]
            for d in answer.alignment["trace"]
        ]
        for answer in answers
    )
    assert first == other
    for read in (
        lambda answer: answer.choices[0].token_ids,
        lambda answer: answer.choices[0].finish_reason,
        lambda answer: answer.choices[0].stop_reason,
        lambda answer: answer.usage,
        lambda answer: answer.alignment["candidate_tokens"],
    ):
        assert read(answers[0]) == read(answers[1])
    return answers[0]


@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
def test_candidates_of_a_seed_are_those_that_the_engine_draws(
    client: OpenAI, sampling: dict[str, Any]
) -> None:
    policy = {**BY_TOKEN, "k": 4, "m": 4}
    check_same(lambda **f: complete(client, policy, max_tokens=24, **sampling, **f))


@pytest.fixture(scope="module")
def whole(client: OpenAI) -> Any:
    """A response that ends by itself."""
    return complete(client, BY_TOKEN, max_tokens=400).choices[0]


@pytest.mark.parametrize("end", ["eos", "stop token", "stop string", "length"])
def test_first_token_ends_a_candidate_as_any_other(client: OpenAI, whole: Any, end: str) -> None:
    fields = {
        "eos": {"max_tokens": len(whole.token_ids) + 8},
        "stop token": {"stop_token_ids": [whole.token_ids[9]], "max_tokens": 400},
        "stop string": {"stop": [whole.text[20:22]], "max_tokens": 400},
        "length": {"max_tokens": 9},
    }[end]
    answer = check_same(lambda **f: complete(client, BY_TOKEN, **fields, **f))
    assert answer.choices[0].finish_reason == ("length" if end == "length" else "stop")


@pytest.mark.parametrize("ask", [complete, chat])
def test_later_blocks_draw_no_token_more_than_they_have(
    client: OpenAI, server: Served, ask: Callable[..., Any]
) -> None:
    before = server.metric("generation_tokens_total")
    ask(client, BLOCKWISE, max_tokens=48, ignore_eos=True)
    drawn = 4 * (17 + 16 + 16)
    until(lambda: server.metric("generation_tokens_total") >= before + drawn, "the last token")
    assert server.metric("generation_tokens_total") == before + drawn
