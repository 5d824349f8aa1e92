"""A process reward model in the real pooling engine: a reward a step, equal to Transformers'."""

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cdserve.config import Settings
from cdserve.errors import ConfigError
from cdserve.launch.application import Application
from cdserve.launch.reward_models import plan
from cdserve.scoring import Objective, Response, build
from cdserve.testing import running_app
from tests.server.served import demo_settings

MARKER = "<|user|>"  # prompts have it too
PROMPT = "Write a review of the kettle."
TEXTS = ["It is good. I love it. It broke", "One step only", "", "A. B. "]
STEPS = [["It is good", "I love it", "It broke"], ["One step only"], [""], ["A", "B"]]


def settings(folder: Path, **steps: Any) -> Settings:
    model = {
        **{"kind": "reward_model", "model": str(folder), "prefixes": True},
        "engine": {"max_model_len": 512, "kv_cache_memory_bytes": 128 << 20},
    }
    ways: dict[str, dict[str, Any]] = {
        "lowest": {"probability": False},
        "last": {"aggregate": "last", "probability": False},
        "product": {"aggregate": "product"},
    }
    given = {"marker": MARKER, "separator": ". ", **steps}
    rewards = {name: {**model, "steps": {**given, **way}} for name, way in ways.items()}
    return Settings.model_validate({"model": "served", "rewards": rewards})


class Running(NamedTuple):
    """The reward model's engine runs; the served model is a ``FakeEngine``."""

    objective: Objective
    http: httpx2.AsyncClient


@pytest.fixture(scope="module")
async def running(
    reward_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    found = settings(reward_model)
    sent = found.model_dump(include={"rewards"}, exclude_none=True)["rewards"]
    sent["step"] = {**sent["last"], "steps": {**sent["last"]["steps"], "separator": "."}}
    served = demo_settings(rewards=sent, default_reward="step", members={}, presets={})
    config = tmp_path_factory.mktemp("served") / "cdserve.yaml"
    config.write_text(yaml.safe_dump(served | {"playground": False}))
    application = Application.build(config)
    assert len(application.models.engines) == 1
    async with running_app(application) as (_, app):
        rewards = build(found.rewards, models=application.models.outputs)
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
            yield Running(Objective(dict.fromkeys(rewards, 1.0), rewards), http)


@pytest.fixture(scope="module")
def objective(running: Running) -> Objective:
    return running.objective


def expected(folder: Path, steps: list[str]) -> list[float]:
    """The model's raw score at the marker after each step."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    chat = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "".join(step + MARKER for step in steps)},
    ]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False)
    with torch.inference_mode():
        scores = model.score(model.model(ids).last_hidden_state)[0, :, 0]
    at = (ids[0] == tokenizer.convert_tokens_to_ids(MARKER)).nonzero()[:, 0]
    found: list[float] = scores[at].tolist()
    return found[-len(steps) :]


async def test_steps_are_scored_at_their_markers(objective: Objective, reward_model: Path) -> None:
    responses = [
        Response(prompt=PROMPT, text=text, tokens=9, finished=True, values={}) for text in TEXTS
    ]
    for score, steps in zip(await objective.score(responses), STEPS, strict=True):
        raw = expected(reward_model, steps)
        assert score.rewards["lowest"] == pytest.approx(min(raw), abs=1e-3)
        assert score.rewards["last"] == pytest.approx(raw[-1], abs=1e-3)
        likely = math.prod(1 / (1 + math.exp(-one)) for one in raw)
        assert score.rewards["product"] == pytest.approx(likely, abs=1e-3)


async def test_marker_in_a_response_starts_no_step(objective: Objective) -> None:
    plain, marked = (
        Response(prompt=PROMPT, text=text, tokens=9, finished=True, values={})
        for text in ("It broke", f"It{MARKER} broke")
    )
    first, second = await objective.score([plain, marked])
    assert first.rewards == second.rewards


@pytest.mark.parametrize("width", [{"beam_width": 2}, {"subtrees": 2}], ids=["beams", "subtrees"])
async def test_search_over_steps_selects_by_the_reward_of_the_last_step(
    running: Running, reward_model: Path, width: dict[str, int]
) -> None:
    policy = {"method": "blockwise_cd", "k": 2, "m": 16, "until": ["."], "report": "trace", **width}
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 48, "seed": 1, "ignore_eos": True}
    answer = await running.http.post("/v1/completions", json={**body, "alignment": policy})
    made = answer.raise_for_status().json()
    text, steps = "", 0
    for decision in made["alignment"]["trace"]:
        candidates = decision["candidates"]
        (chosen,) = (one for one in candidates if one["chosen"])
        text += chosen["text"]
        assert chosen["text"].endswith(".") == ("until" in chosen)
        assert chosen["tokens"] == 16 or "until" in chosen or chosen["finish_reason"]
        parts = [part for part in text.split(".") if part.strip()]
        assert chosen["score"] == pytest.approx(expected(reward_model, parts)[-1], abs=1e-3)
        steps += "until" in chosen
    assert steps > 1
    assert text == made["choices"][0]["text"]
    ends = [one for one in made["alignment"]["trace"][-1]["candidates"] if one["finish_reason"]]
    assert made["alignment"]["score"] == max(one["score"] for one in ends)
    again = await running.http.post("/v1/completions", json={**body, "alignment": policy})
    assert again.json()["choices"] == made["choices"]


def test_marker_of_several_tokens_is_refused(reward_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"rewards.lowest.steps.marker is 'no such token', which"):
        plan(settings(reward_model, marker="no such token"))
