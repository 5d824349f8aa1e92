"""A process reward model in the real pooling engine: a reward a step, equal to Transformers'."""

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cdserve.config import Settings
from cdserve.errors import ConfigError
from cdserve.launch.reward_models import plan
from cdserve.scoring import Objective, Response, build

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


@pytest.fixture(scope="module")
async def objective(reward_model: Path) -> AsyncIterator[Objective]:
    found = settings(reward_model)
    models = plan(found)
    assert len(models.engines) == 1
    async with models.running():
        rewards = build(found.rewards, models=models.outputs)
        yield Objective(dict.fromkeys(rewards, 1.0), rewards)


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


def test_marker_of_several_tokens_is_refused(reward_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"rewards.lowest.steps.marker is 'no such token', which"):
        plan(settings(reward_model, marker="no such token"))
