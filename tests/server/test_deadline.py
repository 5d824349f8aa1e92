"""``deadline_ms``: the best answer so far, flagged."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from openai import OpenAI

from .served import Served
from .wire import Ask, chat, complete, joined

T = TypeVar("T")

LONG = {"max_tokens": 1000, "ignore_eos": True}
LONGEST = 86_400_000
TILT = {"method": "tokenwise_cd", "beta": 0.2}
POLICIES: dict[str, dict[str, Any]] = {
    "best_of_n": {"method": "best_of_n", "n": 4},
    "blockwise": {"method": "blockwise_cd", "k": 4, "m": 32},
    "one block": {"method": "blockwise_cd", "k": 4, "m": 900},
    "beams": {"method": "blockwise_cd", "k": 2, "m": 32, "beam_width": 2},
    "rejection": {"method": "rejection", "eta": 0.001, "r_max": 1e6, "max_draws": 8},
    "cards": {"method": "cards", "m": 32, "r_star": 100.0, "max_draws": 8},
    "speculative": {"method": "speculative_rejection", "n": 4, "m": 64},
    "tokenwise": TILT,
    "mixing": {"method": "logit_mixing", "weights": {"base": 0.5, "tuned": 0.5}},
    "over a tilt": {"method": "blockwise_cd", "k": 2, "m": 32, "proposal": TILT},
    "likelihood": {"method": "blockwise_cd", "k": 2, "m": 900, "rewards": {"fluent": 1.0}},
}
names = pytest.mark.parametrize("name", POLICIES)


def cut(ask: Callable[[int], T], enough: Callable[[T], bool]) -> tuple[int, T]:
    """An answer by a deadline within which enough of it was made, and that deadline.

    How long that takes depends on the machine: from 200 ms on, each deadline is twice the last.
    """
    ms = 200
    while ms < LONGEST:
        if enough(answer := ask(ms)):
            return ms, answer
        ms *= 2
    raise AssertionError("no deadline is long enough")


@names
def test_deadline_returns_the_best_answer_so_far(client: OpenAI, name: str) -> None:
    policy = {**POLICIES[name], "report": "trace"}
    ms, answer = cut(
        lambda ms: complete(client, {**policy, "deadline_ms": ms}, **LONG),
        lambda answer: answer.usage.completion_tokens > 0,
    )
    (choice,) = answer.choices
    report = answer.alignment
    assert report["deadline"] == {"ms": ms, "passed": True}
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens < LONG["max_tokens"]
    # What is taken is the best of those that the deadline did not cut, if there are any.
    last = report["trace"][-1]["candidates"]
    (taken,) = (one for one in last if one["chosen"])
    assert taken["finish_reason"] == "deadline"
    if name not in ("rejection", "cards"):
        whole = [one for one in last if one["tokens"] == policy.get("m")]
        assert taken["score"] == max(one["score"] for one in whole or last)


@names
def test_deadline_that_is_met_changes_nothing(client: OpenAI, name: str) -> None:
    if name == "rejection":
        pytest.skip("what it draws never ends")
    policy, short = POLICIES[name], {"max_tokens": 40}
    free, held = (
        complete(client, p, **short) for p in (policy, {**policy, "deadline_ms": LONGEST})
    )
    assert held.choices[0].text == free.choices[0].text
    assert held.choices[0].finish_reason == free.choices[0].finish_reason
    assert held.alignment["deadline"] == {"ms": LONGEST, "passed": False}
    assert "deadline" not in free.alignment


@names
def test_deadline_that_passes_at_once_returns_an_answer(client: OpenAI, name: str) -> None:
    answer = complete(client, {**POLICIES[name], "deadline_ms": 1}, **LONG)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens < LONG["max_tokens"]
    assert answer.alignment["deadline"] == {"ms": 1, "passed": True}


@names
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("ask", [complete, chat])
def test_stream_without_tokens_ends(client: OpenAI, ask: Ask, n: int, name: str) -> None:
    policy = {**POLICIES[name], "deadline_ms": 1}
    usage = {"stream_options": {"include_usage": True}}
    *chunks, told = ask(client, policy, n=n, stream=True, max_tokens=500, **usage)
    ends = [choice for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted((end.index, end.finish_reason) for end in ends) == [
        (i, "length") for i in range(n)
    ]
    assert chunks[-1].alignment["deadline"] == {"ms": 1, "passed": True}
    assert len({chunk.id for chunk in (*chunks, told)}) == 1
    assert told.usage.completion_tokens < 500 * n


def test_deadline_prefers_a_whole_answer_to_a_cut_one(client: OpenAI) -> None:
    """Some candidates end by themselves early, at a word that is likely; others never do."""
    policy = {"method": "best_of_n", "n": 8, "report": "trace"}
    fields = {"max_tokens": 1000, "extra_body": {"min_tokens": 0}, "stop": [" and"]}

    def whole(answer: Any) -> list[dict[str, Any]]:
        found = answer.alignment["trace"][0]["candidates"]
        return [one for one in found if one["finish_reason"] == "stop"]

    _, answer = cut(lambda ms: complete(client, {**policy, "deadline_ms": ms}, **fields), whole)
    (taken,) = (c for c in answer.alignment["trace"][0]["candidates"] if c["chosen"])
    assert taken["score"] == max(c["score"] for c in whole(answer))


@pytest.mark.parametrize("name", ["blockwise", "tokenwise"])
def test_stream_at_a_deadline_ends_with_the_report(client: OpenAI, name: str) -> None:
    def ask(ms: int) -> list[Any]:
        policy = {**POLICIES[name], "deadline_ms": ms}
        return list(complete(client, policy, stream=True, **LONG))

    _, chunks = cut(ask, joined)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].alignment["deadline"]["passed"]


def test_each_choice_reports_its_deadline(client: OpenAI) -> None:
    ms, answer = cut(
        lambda ms: complete(client, {**POLICIES["blockwise"], "deadline_ms": ms}, n=2, **LONG),
        lambda answer: all(choice.text for choice in answer.choices),
    )
    assert answer.alignment["deadline"] == {"ms": ms, "passed": True}
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]


def test_deadline_leaves_no_request_in_the_engine(server: Served, client: OpenAI) -> None:
    """Its requests are aborted: they do not draw the rest of their tokens."""
    before = server.metric("generation_tokens_total")
    complete(client, {"method": "best_of_n", "n": 8, "deadline_ms": 50}, **LONG)
    server.wait_until_idle()
    drawn = server.metric("generation_tokens_total") - before
    assert drawn < 8 * LONG["max_tokens"]


@pytest.mark.parametrize("value", [0, -1, 1.5, "500", True, 86_400_001])
def test_invalid_deadline_is_refused(client: OpenAI, value: object) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError) as refused:
        complete(client, {"method": "best_of_n", "n": 2, "deadline_ms": value})
    assert refused.value.param == "alignment.deadline_ms"
    assert repr(value) in str(refused.value)
