"""``deadline_ms``: the best answer so far, flagged, soon after the deadline."""

import time
from typing import Any

import pytest
from openai import OpenAI

from .served import Served
from .wire import PROMPT, Ask, chat, complete

LONG = {"max_tokens": 1000, "ignore_eos": True}
"""Takes several seconds."""
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


@names
def test_the_best_answer_so_far_is_the_answer(client: OpenAI, name: str) -> None:
    policy = {**POLICIES[name], "deadline_ms": 2500, "report": "trace"}
    began = time.monotonic()
    answer = complete(client, policy, **LONG)
    took = time.monotonic() - began
    (choice,) = answer.choices
    report = answer.alignment
    assert report["deadline"] == {"ms": 2500, "passed": True}
    assert choice.finish_reason == "length"
    assert 0 < answer.usage.completion_tokens < 1000 * 0.9
    assert took >= 0.7
    # What is taken is the best of those that the deadline did not cut, if there are any.
    last = report["trace"][-1]["candidates"]
    (taken,) = (one for one in last if one["chosen"])
    assert taken["finish_reason"] == "deadline"
    if name not in ("rejection", "cards"):
        whole = [one for one in last if one["tokens"] == policy.get("m")]
        assert taken["score"] == max(one["score"] for one in whole or last)


@names
def test_a_deadline_that_is_met_changes_nothing(client: OpenAI, name: str) -> None:
    if name == "rejection":
        pytest.skip("what it draws never ends")
    policy, short = POLICIES[name], {"max_tokens": 40}
    free, held = (complete(client, p, **short) for p in (policy, {**policy, "deadline_ms": 60000}))
    assert held.choices[0].text == free.choices[0].text
    assert held.choices[0].finish_reason == free.choices[0].finish_reason
    assert held.alignment["deadline"] == {"ms": 60000, "passed": False}
    assert "deadline" not in free.alignment


@names
def test_one_that_passes_at_once_gives_what_there_is(client: OpenAI, name: str) -> None:
    answer = complete(client, {**POLICIES[name], "deadline_ms": 1}, **LONG)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens < 100
    assert answer.alignment["deadline"] == {"ms": 1, "passed": True}


@names
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("ask", [complete, chat])
def test_a_stream_of_nothing_ends_too(client: OpenAI, ask: Ask, n: int, name: str) -> None:
    policy = {**POLICIES[name], "deadline_ms": 1}
    usage = {"stream_options": {"include_usage": True}}
    *chunks, told = ask(client, policy, n=n, stream=True, max_tokens=500, **usage)
    ends = [choice for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted((end.index, end.finish_reason) for end in ends) == [
        (i, "length") for i in range(n)
    ]
    assert chunks[-1].alignment["deadline"] == {"ms": 1, "passed": True}
    assert len({chunk.id for chunk in (*chunks, told)}) == 1
    assert told.usage.completion_tokens < 100


def test_a_whole_answer_is_preferred_to_one_that_is_cut(client: OpenAI) -> None:
    """Some candidates end by themselves early, at a word that is likely; others never do."""
    policy = {"method": "best_of_n", "n": 8, "deadline_ms": 4000, "report": "trace"}
    answer = complete(client, policy, max_tokens=1000, extra_body={"min_tokens": 0}, stop=[" and"])
    (decision,) = answer.alignment["trace"][:1]
    whole = [c for c in decision["candidates"] if c["finish_reason"] == "stop"]
    (taken,) = (c for c in decision["candidates"] if c["chosen"])
    assert whole
    assert taken["score"] == max(c["score"] for c in whole)


@pytest.mark.parametrize("name", ["blockwise", "tokenwise"])
def test_a_stream_ends_with_the_report(client: OpenAI, name: str) -> None:
    stream = client.completions.create(
        model="demo",
        prompt=PROMPT,
        stream=True,
        max_tokens=1000,
        extra_body={"alignment": {**POLICIES[name], "deadline_ms": 1500}, "ignore_eos": True},
    )
    chunks = [chunk for chunk in stream if chunk.choices]
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].model_extra["alignment"]["deadline"]["passed"]


def test_of_several_choices_each_has_it(client: OpenAI) -> None:
    policy = {**POLICIES["blockwise"], "deadline_ms": 1500}
    answer = complete(client, policy, n=2, **LONG)
    assert answer.alignment["deadline"] == {"ms": 1500, "passed": True}
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]


def test_nothing_is_left_in_the_engine(server: Served, client: OpenAI) -> None:
    complete(client, {"method": "best_of_n", "n": 8, "deadline_ms": 300}, **LONG)
    server.wait_for_requests(busy=False, seconds=1.0)


@pytest.mark.parametrize("value", [0, -1, 1.5, "500", True, 86_400_001])
def test_what_is_no_deadline_is_refused(client: OpenAI, value: object) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError) as refused:
        complete(client, {"method": "best_of_n", "n": 2, "deadline_ms": value})
    assert refused.value.param == "alignment.deadline_ms"
    assert repr(value) in str(refused.value)
