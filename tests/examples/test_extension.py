"""The package of examples/extension, installed and served: its decoder and its reward."""

from typing import Any

import httpx2
import pytest
from openai import OpenAI

from tests.server.wire import BLOCKWISE, check_refused, complete

ENOUGH = {"method": "good_enough", "threshold": 0.0, "max_draws": 6, "rewards": {"variety": 1}}


def variety(text: str) -> float:
    """The reward, by its definition."""
    words = text.lower().split()
    return len(set(words)) / len(words)


def test_discovery_lists_extension_method_and_reward(http: httpx2.Client) -> None:
    described = http.get("/v1/alignment").json()
    schema = described["methods"]["good_enough"]
    assert {"threshold", "max_draws"} <= set(schema["required"])
    assert schema["properties"]["batch"]["default"] == 4
    assert described["rewards"]["variety"]["prefixes"] is True


@pytest.mark.parametrize(
    ("threshold", "drawn", "reached"), [(0.0, 4, True), (2.0, 6, False)], ids=["met", "not met"]
)
def test_good_enough_draws_until_a_candidate_reaches_the_score(
    client: OpenAI, threshold: float, drawn: int, reached: bool
) -> None:
    policy = {**ENOUGH, "threshold": threshold, "report": "trace"}
    answer = complete(client, policy)
    report: dict[str, Any] = answer.alignment
    (decision,) = report["trace"]
    assert report["candidates"] == drawn
    assert report["accepted"] is reached
    assert report["score"] == max(one["score"] for one in decision["candidates"])
    assert report["score"] == pytest.approx(variety(answer.choices[0].text))


def test_good_enough_accepts_a_proposal(client: OpenAI) -> None:
    answer = complete(client, {**ENOUGH, "proposal": {"method": "tokenwise_cd", "beta": 1.0}})
    assert answer.alignment["kl"]["estimator"] == "bound+exact_path"


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"max_draws": 17}, "alignment.max_draws", ["17", "1 to 16"]),
        ({"batch": 0}, "alignment.batch", ["0", "at least 1"]),
        ({"draws": 4}, "alignment.draws", ["not known", "batch", "max_draws"]),
    ],
)
def test_good_enough_refuses_invalid_fields(
    client: OpenAI, change: dict[str, Any], param: str, words: list[str]
) -> None:
    check_refused(client, {**ENOUGH, **change}, param, words)


def test_extension_reward_selects_blocks(client: OpenAI) -> None:
    answer = complete(client, {**BLOCKWISE, "rewards": {"variety": 1}, "report": "trace"})
    text = ""
    for decision in answer.alignment["trace"]:
        for one in decision["candidates"]:
            assert one["score"] == pytest.approx(variety(text + one["text"]))
        text += next(one["text"] for one in decision["candidates"] if one["chosen"])
    assert text == answer.choices[0].text
