"""What is refused of reward models before an engine starts, and which of them share one."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cdserve.config import Settings
from cdserve.demo.tiny import MODEL_DIR
from cdserve.demo.tiny.build.folders import load_tokenizer
from cdserve.errors import ConfigError, EngineError
from cdserve.launch import reward_models
from cdserve.launch.reward_models import RewardModels, plan
from cdserve.scoring.reward_model import Dialogue, tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with two labels, without its weights."""
    made = tmp_path_factory.mktemp("rm")
    content = json.loads((MODEL_DIR / "config.json").read_text())
    content["architectures"] = ["LlamaForSequenceClassification"]
    content["id2label"] = {"0": "helpful", "1": "harmless"}
    content["label2id"] = {"helpful": 0, "harmless": 1}
    (made / "config.json").write_text(json.dumps(content))
    return made


def planned(folder: Path, *rewards: dict[str, Any]) -> RewardModels:
    """The rewards r0, r1 and so on of a reward model."""
    given = [{"kind": "reward_model", "model": str(folder), **reward} for reward in rewards]
    named = {f"r{i}": reward for i, reward in enumerate(given)}
    return plan(Settings.model_validate({"model": "m", "rewards": named}))


class Forgetful:
    """An engine that dies as a request comes, which it then never answers: vLLM's may."""

    def __init__(self) -> None:
        self.errored = False
        self.model_config = SimpleNamespace(max_model_len=64)
        self.renderer = SimpleNamespace(get_tokenizer=lambda: load_tokenizer(MODEL_DIR))

    async def encode(self, *_: Any) -> AsyncIterator[Any]:
        """Nothing, for ever."""
        self.errored = True
        await asyncio.Event().wait()
        yield


async def test_request_forgotten_by_a_dying_engine_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def started(_: object) -> AsyncIterator[Forgetful]:
        yield Forgetful()

    monkeypatch.setattr(reward_models, "build_async_engine_client_from_engine_args", started)
    models = planned(folder, {"output": 0})
    (model,) = models.outputs.values()
    dialogue = Dialogue(messages=json.dumps([{"role": "user", "content": "Hi."}]), text="Hi.")
    async with models.running():
        for _ in range(2):  # the first does not hold up those behind it
            with pytest.raises(EngineError, match=r"the engine of the reward model .* has died"):
                await model.queue.score([dialogue])


def test_outputs_are_named_or_numbered(folder: Path) -> None:
    models = planned(folder, {"output": "harmless"}, {"output": 0})
    assert [output.column for output in models.outputs.values()] == [1, 0]


def test_rewards_with_the_same_model_and_flags_share_an_engine(folder: Path) -> None:
    models = planned(
        folder, {"output": 0}, {"output": 1}, {"output": 1, "engine": {"max_model_len": 64}}
    )
    first, second, third = models.outputs.values()
    assert first.queue is second.queue
    assert first.queue is not third.queue
    assert len(models.engines) == 2


def test_engine_is_required_if_requests_fail_without_the_reward(folder: Path) -> None:
    policies = [("skip", 32), ("error", 32), ("base", 64)]
    rewards = [
        {"output": 0, "on_failure": policy, "engine": {"max_model_len": length}}
        for policy, length in policies
    ]
    models = planned(folder, *rewards)
    assert models.required == models.engines[:1]


def test_no_engine_starts_without_reward_models(folder: Path) -> None:
    assert planned(folder).engines == []


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ([{}], r"rewards\.r0\.output is missing; the model has 0: helpful, 1: harmless"),
        ([{"output": "kind"}], r"rewards\.r0\.output is 'kind'; the model has 0: helpful"),
        ([{"output": 2}], r"rewards\.r0\.output is 2; the model has 0: helpful, 1: harmless"),
        (
            [{"output": 0}, {"output": 1, "max_batch": 8}],
            r"rewards\.r1\.max_batch is 8; rewards\.r0, .* has 32",
        ),
        ([{"engine": {"max_len": 8}}], r"rewards\.r0\.engine has '--max-len', which is not a flag"),
        ([{"engine": {"max_model_len": "many"}}], r"rewards\.r0\.engine: .*--max-model-len"),
        ([{"engine": {"runner": "generate"}}], r"engine\.runner is 'generate'; remove it"),
        ([{"model": str(MODEL_DIR)}], "LlamaForCausalLM; a model for sequence classification"),
        ([{"model": "/nowhere"}], r"rewards\.r0\.model is '/nowhere': "),
    ],
)
def test_invalid_reward_model_settings_are_refused(
    folder: Path, rewards: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(folder, *rewards)


def test_dialogue_uses_the_models_chat_template_or_plain_text() -> None:
    tokenizer = load_tokenizer(MODEL_DIR)
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    dialogue = Dialogue("Why? So.", json.dumps(messages))
    templated = "<|begin|><|user|>Why?<|end|><|assistant|>So.<|end|>"
    assert tokenizer.decode(tokens(tokenizer, dialogue)) == templated
    tokenizer.chat_template = None
    assert tokens(tokenizer, dialogue) == tokenizer("Why? So.")["input_ids"]
