"""Several API server processes on one engine: as one server, to clients and to its operator."""

import asyncio
import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.waiting import HANG_SECONDS, until

from .served import Served, demo_settings
from .wire import BEST_OF_N, BLOCKWISE, PROMPT, check_report

RUNNING, WAITING = 8, 24
SECRET = "sk-small"
LONG = {"max_tokens": 600, "ignore_eos": True}
BEST_OF_16 = {"method": "best_of_n", "n": 16}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo with two API servers, room for few candidates, and a key."""
    settings = demo_settings(
        members={},
        presets={},
        admission={"max_running": RUNNING, "max_waiting": WAITING},
        keys={"small": {"api_key_env": "CDTEST_SMALL", "max_candidates": 6}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDTEST_SMALL", SECRET)
        with _served(settings, tmp_path_factory.mktemp("several")) as served:
            yield served


def _served(settings: dict[str, Any], folder: Path) -> Served:
    patience = ["--shutdown-timeout", str(int(HANG_SECONDS))]
    flags = ["--api-server-count", "2", "--api-key", "sk-own", *patience]
    return Served(settings, folder, flags)


async def ask(
    http: httpx2.AsyncClient, policy: Any, key: str = "sk-own", **fields: Any
) -> httpx2.Response:
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 32, "alignment": policy, **fields}
    headers = {"authorization": f"Bearer {key}"}
    return await http.post("/v1/completions", json=body, headers=headers)


async def until_run(served: Served, least: int) -> None:
    """Waits until so many candidates run."""

    def there() -> bool:
        return served.sample("cdserve_running_candidates") >= least

    await asyncio.to_thread(until, there, f"{least} running candidates")


def clients(server: psutil.Process) -> int:
    """Connections that are open to it; the server's to its engine are no TCP."""
    return sum(one.status == psutil.CONN_ESTABLISHED for one in server.net_connections("tcp"))


async def test_both_servers_answer_and_are_counted_together(several: Served) -> None:
    policies = [BEST_OF_N, BLOCKWISE]
    servers = several.api_servers()
    assert len(servers) == 2
    asked: list[httpx2.Response] = []
    for taker, other in (servers, servers[::-1]):
        other.suspend()  # it has no requests and holds no lock
        try:
            async with several.async_client() as http:
                asked += await asyncio.gather(
                    *(ask(http, policies[i % 2], ignore_eos=True) for i in range(4))
                )
                assert clients(taker) > 0
        finally:
            other.resume()
    for i, answer in enumerate(asked):
        check_report(answer.json()["alignment"], policies[i % 2], tokens=32)
    for policy in policies:
        label = f'{{method="{policy["method"]}",outcome="length"}}'
        assert several.sample(f"cdserve_responses_total{label}") == len(asked) / 2
    drawn = sum(answer.json()["alignment"]["candidate_tokens"] for answer in asked)
    assert several.metric("generation_tokens_total") >= drawn
    assert several.sample("cdserve_running_candidates") == 0
    assert several.sample('cdserve_reward_info{kind="value_head",reward="sentiment"}') == 1


async def test_requests_of_both_servers_count_against_one_limit(several: Served) -> None:
    async with several.async_client() as http:
        with several.paused():
            full = [asyncio.create_task(ask(http, BEST_OF_16, **LONG)) for _ in range(2)]
            waiting = "cdserve_waiting_candidates"
            await asyncio.to_thread(several.wait_for_sample, waiting, WAITING)
            for refused in await asyncio.gather(*(ask(http, BEST_OF_N) for _ in range(8))):
                assert refused.status_code == 503
                assert "hold 32 candidates" in refused.json()["error"]["message"]
            assert several.sample('cdserve_rejected_total{limit="server"}') == 8
            for task in full:  # whoever leaves makes room
                task.cancel()
            await asyncio.gather(*full, return_exceptions=True)
            await asyncio.to_thread(several.wait_for_sample, "cdserve_running_candidates", 0)
        assert (await ask(http, BEST_OF_N)).status_code == 200


async def test_two_busy_servers_never_exceed_max_running(
    several: Served,
) -> None:
    """A reading adds up numbers that servers wrote at different moments.

    A slot that is handed over meanwhile may count twice, so that one reading alone may be too high.
    """
    servers, policy = several.api_servers(), {"method": "best_of_n", "n": 2}
    fields = {"max_tokens": 400, "ignore_eos": True}
    async with several.async_client() as http:
        with several.paused():
            asked = [asyncio.create_task(ask(http, BEST_OF_16, **fields))]
            await until_run(several, RUNNING)
            waiting = 16 - RUNNING
            while not all(clients(one) for one in servers) and waiting < WAITING:
                asked.append(asyncio.create_task(ask(http, policy, **fields)))
                waiting += 2
                name = "cdserve_waiting_candidates"
                await asyncio.to_thread(several.wait_for_sample, name, waiting)
            assert several.sample("cdserve_running_candidates") == RUNNING
        readings = [float(RUNNING)]  # a loaded machine may take no other before the requests end
        while not all(one.done() for one in asked):
            readings.append(await asyncio.to_thread(several.sample, "cdserve_running_candidates"))
            await asyncio.sleep(0.05)  # two servers' numbers take milliseconds to add up
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * len(asked)
    assert len(asked) > 1
    assert max(map(min, pairwise(readings))) <= RUNNING


async def test_requests_of_a_key_count_over_both_servers(several: Served) -> None:
    policy = {"method": "best_of_n", "n": 4}
    async with several.async_client() as http:
        with several.paused():
            first = asyncio.create_task(ask(http, policy, SECRET, **LONG))
            await until_run(several, 4)
            for refused in await asyncio.gather(*(ask(http, policy, SECRET) for _ in range(8))):
                assert refused.status_code == 429
        assert (await first).status_code == 200


async def test_shutdown_waits_for_requests_of_both_servers(several: Served) -> None:
    """The last test of this server: it is told to stop while both have searches under way."""
    policy = {"method": "blockwise_cd", "k": 2, "m": 32}
    async with several.async_client() as http:
        with several.paused():
            running = [asyncio.create_task(ask(http, policy, max_tokens=480)) for _ in range(4)]
            await until_run(several, RUNNING)
            os.kill(several.pid, signal.SIGTERM)
        assert [answer.status_code for answer in await asyncio.gather(*running)] == [200] * 4
    assert await asyncio.to_thread(several.wait) == 0


async def test_death_of_the_engine_ends_both_servers(tmp_path: Path) -> None:
    with _served(demo_settings(members={}, presets={}), tmp_path) as served:
        (engine,) = served.engines()
        async with served.async_client() as http:
            with served.paused():  # so that none has ended when it dies
                running = [asyncio.create_task(ask(http, BEST_OF_N, **LONG)) for _ in range(6)]
                await asyncio.to_thread(served.wait_for_candidates, 6 * 4)
                os.kill(engine, signal.SIGKILL)
            await asyncio.to_thread(served.wait_until_unhealthy)
            for answer in await asyncio.gather(*running):
                assert answer.status_code == 500
        assert await asyncio.to_thread(served.wait) == 1
        assert "cdserve: " in served.log()
