"""Base URL of the server: a running one, or one that is started for the length of a context."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cdserve.demo import DemoSettings
from cdserve.errors import ConfigError

if TYPE_CHECKING:
    from cdserve.client.answers import Client

START_SECONDS = 1800.0
STOP_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerArgs:
    """The server to send requests to, and how.

    Attributes:
        url: URL of a running server; None to start one.
        settings: settings of the server to start; None with ``url``.
        flags: vLLM's flags for the server to start.
        model: model id in the requests; None for the server's first model.
        api_key: API key, if the server requires one.
        concurrency: maximum number of concurrent requests.
    """

    url: str | None
    settings: DemoSettings | None
    flags: Sequence[str]
    model: str | None
    api_key: str
    concurrency: int

    def client(self, base_url: str) -> "Client":
        """A client of the server at the URL that ``serving`` yields."""
        from cdserve.client.answers import Client

        return Client(
            base_url, model=self.model, concurrency=self.concurrency, api_key=self.api_key
        )


@contextmanager
def serving(server: ServerArgs) -> Iterator[str]:
    """Yields the base URL of a server, without ``/v1``; stops the server if it started one.

    Raises:
        ConfigError: no healthy server at the URL, or the server does not start; includes the end of
            its log.
    """
    if server.url is not None:
        url = server.url.rstrip("/").removesuffix("/v1")
        if not healthy(url):
            raise ConfigError(f"--url {url}: no healthy server answers there")
        yield url
        return
    assert server.settings is not None  # without a URL
    port = _free_port()
    base_url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "cdserve", "serve", "--config", str(server.settings.config)]
    command += [f"--set={change}" for change in server.settings.changes]
    command += [
        *server.flags,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--disable-uvicorn-access-log",
    ]
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        # A separate process group, so that vLLM's processes can be killed with it.
        process = subprocess.Popen(command, stdout=log, stderr=log, process_group=0)
        # By default SIGTERM ends this process at once, and the server would outlive it.
        previous = signal.signal(signal.SIGTERM, _exit)
        try:
            _wait(process, base_url, Path(log.name))
            yield base_url
        finally:
            _stop(process)
            signal.signal(signal.SIGTERM, previous)


def healthy(base_url: str) -> bool:
    """Whether ``GET /health`` at the URL succeeds."""
    try:
        with urllib.request.urlopen(f"{base_url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException, ValueError):
        return False


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _wait(process: "subprocess.Popen[bytes]", base_url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if healthy(base_url):
            return
        time.sleep(0.5)
    log_end = log.read_text(encoding="utf-8", errors="replace")[-4000:]
    raise ConfigError(f"the server did not start; the end of its log:\n{log_end}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
