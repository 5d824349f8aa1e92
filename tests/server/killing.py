"""Killing a busy server, and waiting for its processes to end."""

import os
import signal
import threading
from contextlib import suppress

import httpx2
import psutil

from tests.waiting import HANG_SECONDS

from .served import Served
from .wire import PROMPT


def started(served: Served) -> list[psutil.Process]:
    """Child processes of the server, at any depth."""
    return psutil.Process(served.pid).children(recursive=True)


def load(served: Served) -> None:
    """Sends long requests; returns once the engine runs them."""
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 1500, "n": 4, "ignore_eos": True}
    drawn = served.metric("generation_tokens_total")

    def ask() -> None:
        with suppress(httpx2.TransportError), served.client() as client:
            client.post("/v1/completions", json=body)

    threading.Thread(target=ask, daemon=True).start()
    served.wait_for_tokens(drawn)


def kill(served: Served) -> None:
    os.kill(served.pid, signal.SIGKILL)
    assert served.wait() == -signal.SIGKILL


def gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Waits for the processes to end; kills and returns those that do not."""
    _, alive = psutil.wait_procs(processes, HANG_SECONDS)
    for process in alive:
        process.kill()
    return alive
