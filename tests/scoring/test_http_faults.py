"""Requests whose reward is behind a failing HTTP server: as ``on_failure`` says, nothing lost."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client import REGISTRY

from tests.server.served import demo_settings
from tests.waiting import HANG_SECONDS, until

from .test_http_model import FAULTS, RewardServer, outputs

POLICIES = ("error", "skip", "base")


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """The environment as it was: the start of a server changes it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def rewards() -> Iterator[RewardServer]:
    with RewardServer() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
async def http(
    rewards: RewardServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx2.AsyncClient]:
    from cdserve.launch.application import Application
    from cdserve.testing import running_app

    settings = demo_settings(playground=False)
    remote = {"kind": "http", "url": rewards.url, "route": "classify", "output": 0, "retries": 0}
    for policy in POLICIES:
        settings["rewards"][policy] = {**remote, "on_failure": policy}
        settings["rewards"][f"hasty_{policy}"] = {**remote, "on_failure": policy, "timeout": 0.2}
    gone = {**remote, "url": "http://127.0.0.1:9"}
    for policy in POLICIES:
        settings["rewards"][f"gone_{policy}"] = {**gone, "on_failure": policy}
    config = tmp_path_factory.mktemp("http") / "cdserve.yaml"
    config.write_text(yaml.safe_dump(settings))
    async with running_app(Application.build(config)) as (_, app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://fake", timeout=HANG_SECONDS
        ) as client:
            yield client


async def best_of(http: httpx2.AsyncClient, reward: str, **fields: Any) -> httpx2.Response:
    policy = {"method": "best_of_n", "n": 4, "rewards": {reward: 1.0, "brevity": 1.0}}
    body = {"model": "demo", "prompt": "Review: kettle.", "max_tokens": 8, "alignment": policy}
    return await http.post("/v1/completions", json={**body, **fields})


async def check_policies(http: httpx2.AsyncClient, prefix: str, message: str) -> None:
    """Three requests at once, one per ``on_failure``."""
    names = [prefix + policy for policy in POLICIES]
    failed, skipped, base = await asyncio.gather(*(best_of(http, name) for name in names))
    assert failed.status_code == 500
    assert message in failed.json()["error"]["message"]
    for name, answer in zip(names[1:], (skipped, base), strict=True):
        report = answer.json()["alignment"]
        assert report["failed"] == {name: 1}
        assert "brevity" in report["rewards"]
        assert name not in report["rewards"]
    assert candidates_in_flight() == 0


def metric(name: str, **labels: str) -> float:
    """Value of a metric of this process."""
    value = REGISTRY.get_sample_value(name, labels)
    assert value is not None, name
    return value


def candidates_in_flight() -> float:
    """Candidates that run or wait."""
    return metric("cdserve_running_candidates") + metric("cdserve_waiting_candidates")


async def test_remote_reward_selects_the_longest_response(
    http: httpx2.AsyncClient, rewards: RewardServer
) -> None:
    rewards.answers = [outputs]
    report = (await best_of(http, "error", seed=1)).json()["alignment"]
    assert report["rewards"]["error"] == report["scores"]["max"] - report["rewards"]["brevity"]
    # The rewards with the same requests share a queue; the first one by name is the label.
    assert metric("cdserve_scorer_batch_size_sum", reward="base") >= 4
    assert metric("cdserve_scorer_wait_seconds_count", reward="base") >= 4
    assert metric("cdserve_reward_info", reward="error", kind="http") == 1
    public = (await http.get("/v1/alignment")).json()["rewards"]["error"]
    assert public["route"] == "classify"
    assert not public.keys() & {"url", "model", "template", "tokenizer", "api_key_env"}


@pytest.mark.parametrize("fault", ["500", "wrong shape", "NaN", "count", "not json"])
async def test_faulty_answer_is_handled_as_on_failure_says(
    http: httpx2.AsyncClient, rewards: RewardServer, fault: str
) -> None:
    rewards.answers = [FAULTS[fault][0]]
    message = {"NaN": "is nan"}.get(fault, "failed: the reward server ")
    await check_policies(http, "", message)
    rewards.answers = [outputs]
    assert (await best_of(http, "error")).status_code == 200


async def test_slow_server_is_handled_as_on_failure_says(
    http: httpx2.AsyncClient, rewards: RewardServer
) -> None:
    rewards.answers = [outputs]
    slow = rewards.meeting = threading.Barrier(1000)
    await check_policies(http, "hasty_", "took longer than its timeout of 0.2 s")
    rewards.meeting = threading.Barrier(1)
    slow.abort()
    assert (await best_of(http, "error")).status_code == 200


async def test_dead_server_is_handled_as_on_failure_says(http: httpx2.AsyncClient) -> None:
    await check_policies(http, "gone_", "failed: the reward server cannot be reached")


async def test_client_that_leaves_loses_nothing(
    http: httpx2.AsyncClient, rewards: RewardServer
) -> None:
    rewards.answers = [outputs]
    slow = rewards.meeting = threading.Barrier(1000)
    sent = len(rewards.requests)
    task = asyncio.create_task(best_of(http, "error"))
    await asyncio.to_thread(until, lambda: len(rewards.requests) > sent)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    rewards.meeting = threading.Barrier(1)
    assert (await best_of(http, "error")).status_code == 200
    assert candidates_in_flight() == 0
    slow.abort()
