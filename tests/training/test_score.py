"""Rewards of cached responses: batches, failures, and values kept on disk."""

import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cdserve.errors import ConfigError
from cdserve.training import score as scoring
from cdserve.training.fill_cache import FilledCache
from cdserve.training.job import Data, HeadSpec, TrainingJob
from cdserve.training.rewards import read_rewards
from cdserve.training.rollouts import Rollout, write
from tests.scoring.test_http_model import RewardServer
from tests.scoring.test_judge import Endpoint
from value_heads import ShardWriter

TEXTS = {"test": ["a", "bb"], "validation": ["ccc"], "train": ["d", "{}", "Yes.", "e e"]}
CUT = "e e"


@pytest.fixture
def cache(tmp_path: Path) -> FilledCache:
    """A cache of a few responses, the last of them cut."""
    texts = [text for texts in TEXTS.values() for text in texts]
    for name, responses in TEXTS.items():
        rollouts = [
            Rollout(
                prompt=texts.index(text),
                prompt_ids=[1],
                tokens=[2] * len(text),
                text=text,
                ended=text != CUT,
            )
            for text in responses
        ]
        write(tmp_path / f"{name}-rollouts-00000.jsonl", rollouts)
        writer = ShardWriter(tmp_path, name)
        for rollout in rollouts:
            tokens = torch.tensor(rollout.tokens)
            states = torch.zeros(len(tokens) + 1, 2)
            writer.add(states, tokens, ended=rollout.ended, prompt=rollout.prompt)
        writer.flush()
    prompts = [f"Why {text}?" for text in texts]
    counts = {name: len(responses) for name, responses in TEXTS.items()}
    return FilledCache(folder=tmp_path, prompts=prompts, texts=prompts, counts=counts, base_hash="")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def job(folder: Path, *rewards: str, **settings: Any) -> TrainingJob:
    """A job with rewards of a settings file, or with functions if there are no settings."""
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump({"model": "m", "rewards": settings}))
    return TrainingJob(
        data=Data(model="m", prompts=Path("p"), cache=folder),
        rewards=read_rewards(rewards, path if settings else None),
        method="fudge",
        head=HeadSpec(architecture="linear"),
        out=folder / "out",
    )


def score(started: TrainingJob, cache: FilledCache) -> Mapping[str, torch.Tensor]:
    return scoring.score(started.rewards, cache, started.score_cut).by_set


def judge(endpoint: Endpoint, **settings: Any) -> dict[str, Any]:
    fixed = {"kind": "judge", "url": endpoint.url, "model": "j", "retries": 0}
    return {**fixed, "rubric": "{prompt} {response}", **settings}


def test_settings_and_functions_are_scored_together(cache: FilledCache) -> None:
    settings = {
        "json": {"kind": "json_valid"},
        "ends": {"kind": "regex", "pattern": r"\.$"},
        "short": {"kind": "length", "target": 1},
        "both": {"kind": "ensemble", "of": ["json", "ends"], "aggregate": "mean"},
    }
    names = ("both", "brevity=tests.commands.rewards:brevity", "short")
    rewards = score(job(cache.folder, *names, **settings), cache)
    assert {name: list(values.shape) for name, values in rewards.items()} == {
        name: [len(texts), 3] for name, texts in TEXTS.items()
    }
    train = [[0.0, -0.01, 0.0], [0.5, -0.02, -1.0], [0.5, -0.04, -3.0], [math.nan] * 3]
    torch.testing.assert_close(rewards["train"], torch.tensor(train), equal_nan=True)


def test_judge_grades_each_response_once_over_all_runs(
    cache: FilledCache, endpoint: Endpoint
) -> None:
    endpoint.answers = ["1", "2", "3", "4", "none", "5"]
    first = job(cache.folder, "grade", grade=judge(endpoint, concurrency=1))
    with pytest.raises(ConfigError, match=r"--rewards grade failed on '{}': .*gave no number"):
        score(first, cache)
    assert len(endpoint.asked) == 5
    again = job(cache.folder, "mark", mark=judge(endpoint, concurrency=4, timeout=7))
    rewards = score(again, cache)
    assert rewards["test"].tolist() == [[1.0], [2.0]]
    assert rewards["train"][:3].tolist() == [[4.0], [5.0], [5.0]]
    assert rewards["train"][3].isnan().all()
    assert len(endpoint.asked) == 7
    score(again, cache)
    assert len(endpoint.asked) == 7
    other = job(cache.folder, "grade", grade=judge(endpoint, rubric="Again: {response}"))
    score(other, cache)
    assert len(endpoint.asked) == 13


def test_judge_is_asked_up_to_its_concurrency(cache: FilledCache, endpoint: Endpoint) -> None:
    endpoint.meeting = threading.Barrier(3, timeout=20)
    grades = job(cache.folder, "grade", grade=judge(endpoint, concurrency=3))
    score(grades, replace(cache, counts={"train": 4}))
    assert endpoint.most_at_once == 3


def test_reward_behind_http_is_scored_in_batches_and_kept(cache: FilledCache) -> None:
    with RewardServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        http = {"kind": "http", "url": server.url, "route": "classify", "output": 0}
        first = job(cache.folder, "rm", rm={**http, "template": "{response}"})
        rewards = score(first, cache)
        assert rewards["train"][:3].tolist() == [[1.0], [2.0], [4.0]]
        assert len(server.requests) == len(TEXTS)  # one per set
        again = job(cache.folder, "rm", rm={**http, "template": "{response}", "max_batch": 2})
        score(again, cache)
        assert len(server.requests) == len(TEXTS)
        other = job(cache.folder, "rm", rm={**http, "template": "Again: {response}"})
        score(other, cache)
        assert len(server.requests) == 2 * len(TEXTS)
        server.shutdown()


def test_kept_values_of_cut_responses_are_read_only_if_they_count(
    cache: FilledCache, endpoint: Endpoint
) -> None:
    plain = job(cache.folder, "grade", grade=judge(endpoint))
    assert not score(replace(plain, score_cut=True), cache)["train"].isnan().any()
    assert score(plain, cache)["train"][:, 0].isnan().tolist() == [False, False, False, True]
    assert len(endpoint.asked) == 7


@pytest.mark.parametrize(
    ("rewards", "refusal"),
    [
        (("x",), r"--rewards names x; .*settings\.yaml has both, deep, likely, value"),
        (("value",), "value is of kind value_head and cannot be trained on: a head learns from"),
        (("both",), "likely is of kind loglik and cannot be trained on"),
        (("a=b:c:d",), r"--rewards names a=b:c:d; .* has"),
        (("a=json:dumps", "a=json:loads"), "--rewards names a twice"),
    ],
)
def test_reward_that_cannot_be_computed_is_refused(
    tmp_path: Path, rewards: tuple[str, ...], refusal: str
) -> None:
    settings = {
        "value": {"kind": "value_head", "path": "nowhere"},
        "likely": {"kind": "loglik"},
        "both": {"kind": "ensemble", "of": ["likely", "deep"]},
        "deep": {"kind": "reward_model", "model": "nowhere"},
    }
    with pytest.raises(ConfigError, match=refusal):
        job(tmp_path, *rewards, **settings)


def test_name_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--rewards is x; .* or the name of a reward"):
        job(tmp_path, "x")


def test_settings_without_a_named_reward_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config is .*settings\.yaml; it requires --rewards"):
        job(tmp_path, json={"kind": "json_valid"})


def test_failing_function_is_named(cache: FilledCache) -> None:
    with pytest.raises(
        ConfigError, match=r"--rewards f failed on one of 2 responses, the first 'a': TypeError"
    ):
        score(job(cache.folder, "f=operator:truediv"), cache)


@pytest.mark.own_servers
def test_reward_model_scores_as_on_the_server(cache: FilledCache, reward_model: Path) -> None:
    """The second run reads the kept scores and starts no engine."""
    model = {
        "kind": "reward_model",
        "model": str(reward_model),
        "engine": {"max_model_len": 512, "kv_cache_memory_bytes": 128 << 20},
    }
    started = job(cache.folder, "rm", "f=tests.commands.rewards:brevity", rm=model)
    rewards = score(started, cache)
    assert rewards["train"][:3].isfinite().all()
    assert len(set(rewards["train"][:3, 0].tolist())) == 3
    assert started.rewards.models is not None
    again = job(cache.folder, "rm", rm={**model, "max_batch": 8})
    assert again.rewards.digests == started.rewards.digests
    assert torch.equal(score(again, cache)["test"][:, 0], rewards["test"][:, 0])
