"""A reward model beside the served model: its scores, what they do, how they are batched."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from .gold import assert_better, held_out, true_rewards
from .served import Served

PROMPTS = held_out(24)
RESPONSES = ["I love it. The handle has a firm grip.", "It broke on the first day.", ""]
CHAT = [
    {"role": "system", "content": "You write reviews."},
    {"role": "user", "content": [{"type": "text", "text": "Write a review of the kettle."}]},
]
MAX_LENGTH = 512
ROUTES = {"completions": {"prompt": PROMPTS[0]}, "chat/completions": {"messages": CHAT}}


def score(http: httpx2.Client, prompt: Any, responses: list[str] = RESPONSES) -> list[float]:
    body = {"model": "demo", "prompt": prompt, "responses": responses, "rewards": {"model": 1}}
    answer = http.post("/v1/alignment/score", json=body)
    answer.raise_for_status()
    return [one["score"] for one in answer.json()["scores"]]


def logits(
    reward_model: Path, messages: list[Any], responses: list[str] = RESPONSES
) -> list[float]:
    """Transformers' own, a response at a time."""
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    model = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    found = []
    for response in responses:
        chat = [*messages, {"role": "assistant", "content": response}]
        ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False)
        with torch.inference_mode():
            found.append(model(ids).logits[0, 0].item())
    return found


@pytest.mark.parametrize("prompt", PROMPTS[:4])
def test_scores_are_the_raw_logits(http: httpx2.Client, reward_model: Path, prompt: str) -> None:
    expected = logits(reward_model, [{"role": "user", "content": prompt}])
    assert score(http, prompt) == pytest.approx(expected, abs=1e-3)
    assert min(expected) < 0  # as no sigmoid is
    assert expected[0] > expected[1]


def test_chat_is_scored_by_the_chat_template(http: httpx2.Client, reward_model: Path) -> None:
    plain = [CHAT[0], {"role": "user", "content": "Write a review of the kettle."}]
    assert score(http, CHAT) == pytest.approx(logits(reward_model, plain), abs=1e-3)


@pytest.mark.parametrize("route", ROUTES)
def test_generated_text_is_scored_like_given_text(http: httpx2.Client, route: str) -> None:
    asked = ROUTES[route]
    policy = {"method": "best_of_n", "n": 3, "rewards": {"model": 1}}
    body = {"model": "demo", "max_tokens": 64, "seed": 1, "alignment": policy, **asked}
    answer = http.post(f"/v1/{route}", json=body).json()
    (choice,) = answer["choices"]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    (expected,) = score(http, next(iter(asked.values())), [text])
    assert answer["alignment"]["rewards"]["model"] == pytest.approx(expected, abs=1e-3)


async def test_reward_model_raises_the_true_reward_in_shared_batches(server: Served) -> None:
    n = 4
    policies = {
        "none": {"method": "none"},
        "best_of_n": {"method": "best_of_n", "n": n, "rewards": {"model": 1}},
    }
    rewards = await true_rewards(server, PROMPTS, policies)
    assert_better(rewards["none"], rewards["best_of_n"])
    async with server.async_client() as client:
        # All at once: responses to be scored, and none to be generated before.
        bodies = [{"prompt": p, "responses": RESPONSES, "rewards": {"model": 1}} for p in PROMPTS]
        await asyncio.gather(*(client.post("/v1/alignment/score", json=b) for b in bodies))
        metrics = (await client.get("/metrics")).text
    batches = {
        (sample.name.rpartition("_")[2], sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name.startswith("cdserve_scorer_batch_size")
    }
    count = batches["count", None]
    assert batches["bucket", "4.0"] < count == batches["bucket", "32.0"]
    assert batches["sum", None] > count


def test_accepted_blocks_are_in_the_prefix_cache_of_the_reward_model(http: httpx2.Client) -> None:
    policy = {"method": "blockwise_cd", "k": 2, "m": 32, "rewards": {"early": 1}}
    body = {"model": "demo", "prompt": PROMPTS[1], "max_tokens": 128, "alignment": policy}
    before = _counted(http)
    (choice,) = http.post("/v1/completions", json={**body, "ignore_eos": True}).json()["choices"]
    read, cached = (b - a for a, b in zip(before, _counted(http), strict=True))
    assert choice["finish_reason"] == "length"
    # Of four decisions the first has the prompt's blocks at most, the last three blocks more.
    assert 2 * (32 + 64 + 96) * 0.8 < cached < read


def _counted(http: httpx2.Client) -> list[float]:
    lines = http.get("/metrics").text.splitlines()
    names = [f"cdserve_scorer_{name}_total{{" for name in ("tokens", "cached_tokens")]
    found = [[line for line in lines if line.startswith(name)] for name in names]
    return [float(line.rsplit(" ", 1)[1]) for (line,) in found]


def test_prefixes_are_scored_only_if_the_operator_declares_so(http: httpx2.Client) -> None:
    policy = {"method": "blockwise_cd", "k": 2, "m": 32}
    body = {"model": "demo", "prompt": PROMPTS[0], "max_tokens": 64}
    refused = http.post(
        "/v1/completions", json={**body, "alignment": {**policy, "rewards": {"model": 1}}}
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "alignment.rewards.model"
    answer = http.post(
        "/v1/completions", json={**body, "alignment": {**policy, "rewards": {"early": 1}}}
    )
    assert "early" in answer.json()["alignment"]["rewards"]


def test_text_too_long_for_the_reward_model_is_an_error(http: httpx2.Client) -> None:
    body = {"prompt": PROMPTS[0], "responses": ["good " * 600], "rewards": {"model": 1}}
    answer = http.post("/v1/alignment/score", json=body)
    assert answer.status_code >= 400
    message = answer.json()["error"]["message"]
    assert "reward 'model' failed: prompt and response have" in message
    assert f"reads up to {MAX_LENGTH}" in message
    assert len(score(http, PROMPTS[0])) == len(RESPONSES)  # and goes on


def test_operator_settings_of_a_reward_model_are_not_published(http: httpx2.Client) -> None:
    told = http.get("/v1/alignment").json()["rewards"]["model"]
    assert told["kind"] == "reward_model"
    assert (told["prefixes"], told["output"]) == (False, "sentiment")
    assert not told.keys() & {"engine", "model"}


def test_vllm_metrics_are_those_of_the_served_model(server: Served) -> None:
    assert server.metric("request_success_total") > 0
