"""The processes of a killed server end, busy or not."""

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil

from tests.waiting import HANG_SECONDS

from .served import Served, demo_settings
from .wire import PROMPT

ENGINE = {"members": {}, "presets": {}}


def test_busy_engine_and_api_servers_end_with_a_killed_server(tmp_path: Path) -> None:
    with Served(demo_settings(**ENGINE), tmp_path, ["--api-server-count", "2"]) as served:
        processes = started(served)
        load(served)
        kill(served)
        assert gone(processes) == []


def test_worker_that_hangs_in_a_collective_ends_with_a_killed_server(tmp_path: Path) -> None:
    """The other worker is stopped, so this one blocks in the collective."""
    with Served(demo_settings(**ENGINE), tmp_path, ["--tensor-parallel-size", "2"]) as served:
        processes = started(served)
        *others, stopped = (one for one in processes if "VLLM::" in " ".join(one.cmdline()))
        load(served)
        stopped.suspend()
        kill(served)
        assert gone(others) == []
        stopped.resume()
        assert gone(processes) == []


def started(served: Served) -> list[psutil.Process]:
    """Child processes of the server, at any depth."""
    return psutil.Process(served.pid).children(recursive=True)


def load(served: Served) -> None:
    """Sends long requests; returns once the engine runs them."""
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 1500, "n": 4, "ignore_eos": True}

    def ask() -> None:
        with suppress(httpx2.TransportError), served.client() as client:
            client.post("/v1/completions", json=body)

    threading.Thread(target=ask, daemon=True).start()
    served.wait_for_tokens(0)


def kill(served: Served) -> None:
    os.kill(served.pid, signal.SIGKILL)
    assert served.wait() == -signal.SIGKILL


def gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Waits for the processes to end; kills and returns those that do not."""
    _, alive = psutil.wait_procs(processes, HANG_SECONDS)
    for process in alive:
        process.kill()
    return alive
