"""Rewards of every kind over the wire: combined, weighed on one scale, and done without."""

import json
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from cdserve.demo.tiny.reward import sentiment_gold

PROMPT = 'Review of the film "The Glass Harbour":'


def best_of_4(client: OpenAI, rewards: dict[str, float], **fields: Any) -> tuple[str, Any]:
    """The text and the report."""
    made = client.completions.create(
        model="demo",
        prompt=PROMPT,
        max_tokens=64,
        seed=5,
        extra_body={"alignment": {"method": "best_of_n", "n": 4, "rewards": rewards, **fields}},
    )
    return made.choices[0].text, made.model_extra["alignment"]


def score(http: httpx2.Client, responses: list[str], rewards: dict[str, float]) -> list[Any]:
    body = {"prompt": PROMPT, "responses": responses, "rewards": rewards}
    answer = http.post("/v1/alignment/score", json=body)
    assert answer.status_code == 200, answer.text
    found: list[Any] = answer.json()["scores"]
    return found


def test_text_rewards_score_as_documented(http: httpx2.Client) -> None:
    scores = score(http, [" A fine Film.", "[1, 2]", ""], {"named": 2.0, "json": 1.0})
    assert [one["rewards"] for one in scores] == [
        {"named": 1.0, "json": 0.0},
        {"named": 0.0, "json": 1.0},
        {"named": 0.0, "json": 0.0},
    ]
    assert [one["score"] for one in scores] == [2.0, 1.0, 0.0]


def test_ensemble_with_min_is_the_least_of_its_rewards(http: httpx2.Client) -> None:
    responses = [" The cast is lovely.", " It is dull. " * 20]
    weights = {"sentiment": 1.0, "brevity": 1.0, "careful": 1.0}
    for one in score(http, responses, weights):
        rewards = one["rewards"]
        assert rewards["careful"] == min(rewards["sentiment"], rewards["brevity"])


def test_standardised_reward_is_weighted_on_its_scale_and_reported_raw(
    http: httpx2.Client,
) -> None:
    (one,) = score(http, [" Fine."], {"scaled": 3.0})
    assert one["score"] == pytest.approx(3.0 * (one["rewards"]["scaled"] + 1.0) / 0.5)


def test_many_responses_are_scored_concurrently_and_in_order(http: httpx2.Client) -> None:
    responses = [f" The film is {word}." for word in ("lovely", "dull", "awful", "fine")] * 2
    scores = score(http, responses, {"sentiment": 1.0, "sentiment_gold": 0.0})
    golds = [one["rewards"]["sentiment_gold"] for one in scores]
    assert golds == [sentiment_gold(PROMPT, response) for response in responses]
    for one, again in zip(scores[:4], scores[4:], strict=True):
        assert one["score"] == pytest.approx(again["score"], abs=1e-4)


def test_decision_continues_without_an_optional_reward(client: OpenAI) -> None:
    """Whatever weight the missing one has, what is left decides as if alone."""
    alone, _ = best_of_4(client, {"sentiment_gold": 1.0})
    text, report = best_of_4(client, {"sentiment_gold": 1.0, "optional": 100.0})
    assert text == alone
    assert report["failed"] == {"optional": 1}
    assert report["rewards"].keys() == {"sentiment_gold"}
    assert report["score"] == report["rewards"]["sentiment_gold"]


def test_decision_falls_back_to_a_draw_of_the_base(client: OpenAI) -> None:
    plain = client.completions.create(model="demo", prompt=PROMPT, max_tokens=64, seed=5)
    text, report = best_of_4(client, {"sentiment_gold": 1.0, "decisive": 1.0}, report="trace")
    assert text == plain.choices[0].text
    assert report["failed"] == {"decisive": 1}
    (decision,) = report["trace"]
    assert [candidate["chosen"] for candidate in decision["candidates"]] == [True] + [False] * 3


def test_blockwise_continues_without_an_optional_reward(client: OpenAI) -> None:
    policy = {"method": "blockwise_cd", "k": 2, "m": 16, "rewards": {"careful": 1.0}}
    made = client.completions.create(
        model="demo", prompt=PROMPT, max_tokens=48, seed=5, extra_body={"alignment": policy}
    )
    assert made.model_extra["alignment"]["rewards"].keys() == {"careful"}
    with pytest.raises(openai.BadRequestError, match="optional scores finished responses only"):
        client.completions.create(
            model="demo",
            prompt=PROMPT,
            extra_body={"alignment": {**policy, "rewards": {"optional": 1.0}}},
        )


def test_score_route_reports_failed_rewards(http: httpx2.Client) -> None:
    for one in score(http, [" Fine.", " Dull."], {"brevity": 1.0, "optional": 1.0}):
        assert one["failed"] == ["optional"]
        assert one["rewards"].keys() == {"brevity"}


def test_discovery_shows_the_terms_and_no_secrets(http: httpx2.Client) -> None:
    rewards = http.get("/v1/alignment").json()["rewards"]
    assert rewards["optional"]["on_failure"] == "skip"
    assert rewards["careful"]["of"] == ["sentiment", "brevity"]
    assert rewards["careful"]["prefixes"] is True
    assert rewards["named"]["prefixes"] is False
    assert "callable" not in json.dumps(rewards)
