"""A ``cdserve serve`` of the tests' own: started, asked for its numbers, stopped."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import psutil
import yaml

from cdserve.demo.tiny import DEMO_DIR, HEAD_DIR, MODEL_DIR, Q_HEAD_DIR, REF_DIR, TUNED_DIR
from tests.forked import Forked
from tests.waiting import HANG_SECONDS, until

from .gate import FOLDER, Gate

HTTP: dict[str, Any] = {"timeout": HANG_SECONDS, "verify": False}
"""Arguments of HTTP clients. Servers have no TLS: loading its certificates would take 20 ms."""
CONFIDENCES = {
    "self_certainty": {"kind": "confidence"},
    "sharp": {"kind": "confidence", "of": "entropy", "window": 5},
    "lowest": {
        **{"kind": "confidence", "of": "top_k_logprob", "top_k": 7},
        **{"window": 9, "aggregate": "min"},
    },
    "ending": {"kind": "confidence", "of": "logprob", "window": 9, "aggregate": "tail"},
    "doubtful": {"kind": "confidence", "window": 3, "aggregate": "bottom_10"},
    "likely": {"kind": "loglik", "per_token": True},
}
"""A reward of each kind of confidence."""


def demo_settings(**changes: Any) -> dict[str, Any]:
    """The demo's settings with absolute paths, so that they can be served from any folder."""
    settings = yaml.safe_load((DEMO_DIR / "cdserve.yaml").read_text())
    settings["model"] = str(MODEL_DIR)
    settings["rewards"]["sentiment"] |= {"path": str(HEAD_DIR), "q_head": str(Q_HEAD_DIR)}
    settings["members"] = {"tuned": str(TUNED_DIR), "ref": str(REF_DIR)}
    return settings | changes


class Served:
    """A server on a free port of this machine, forked from a process that has imported vLLM.

    Args:
        settings: what goes into its YAML file; None for no file.
        folder: where that file and the log are written.
        flags: vLLM's flags.
        packages: a folder with packages that it can import too.
        fake: whether it runs on a ``FakeEngine``, not on the model.
    """

    def __init__(
        self,
        settings: Mapping[str, Any] | None,
        folder: Path,
        flags: Sequence[str] = (),
        packages: Path | None = None,
        fake: bool = False,
    ) -> None:
        self._command = ["cdserve.testing"] if fake else ["cdserve", "serve"]
        self._settings: list[str] = []
        if settings is not None:
            (config := folder / "cdserve.yaml").write_text(yaml.safe_dump(dict(settings)))
            self._settings = ["--config", str(config)]
        self._log = folder / "server.log"
        self._flags = flags
        path = [str(packages or ""), os.environ.get("PYTHONPATH", "")]
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "VLLM_ENABLE_RESPONSES_API_STORE": "1",
            # Clients close idle connections first: none is closed just as a request is sent on it.
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
            FOLDER: str(folder),
        }
        self.gate = Gate(folder)
        self._ended = False
        self.base_url = f"http://127.0.0.1:{free_port()}"

    def __enter__(self) -> "Served":
        module, *command = self._command
        host, port = self.base_url.removeprefix("http://").split(":")
        command += [*self._settings, "--host", host, "--port", port, *self._flags]
        with self._log.open("w") as log:
            self._process = Forked(module, command, self._environment, log, log)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ended:
            return
        alive = self._process.poll() is None
        self._process.terminate()
        try:
            self._process.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            raise AssertionError(f"alive {HANG_SECONDS} s after SIGTERM:\n{self.log()}") from None
        assert alive, f"the server died during the tests:\n{self.log()}"

    @property
    def pid(self) -> int:
        """The process that serves HTTP."""
        return self._process.pid

    def wait(self) -> int:
        """Waits until it has ended by itself; its exit status."""
        status = self._process.wait(HANG_SECONDS)
        self._ended = True
        return status

    def log(self) -> str:
        """The end of what it printed."""
        return self._log.read_text()[-6000:]

    def logged(self, word: str) -> list[str]:
        """The lines that it printed with a word in them, as ``grep`` finds them."""
        return [line for line in self._log.read_text().splitlines() if word in line]

    def client(self) -> httpx2.Client:
        """A plain HTTP client of it."""
        return httpx2.Client(base_url=self.base_url, **HTTP)

    def async_client(self) -> httpx2.AsyncClient:
        """A plain HTTP client of it, for any number of requests at once."""
        limits = httpx2.Limits(max_connections=None)
        return httpx2.AsyncClient(base_url=self.base_url, limits=limits, **HTTP)

    def engines(self) -> list[int]:
        """Process ids of its engines, those that started first come first."""
        return [one.pid for one in spawned(psutil.Process(self.pid)) if not self._listens(one)]

    def api_servers(self) -> list[psutil.Process]:
        """Its API servers, where there are several."""
        return [one for one in spawned(psutil.Process(self.pid)) if self._listens(one)]

    def _listens(self, process: psutil.Process) -> bool:
        port = int(self.base_url.rsplit(":", 1)[1])
        sockets = process.net_connections("tcp")
        return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets)

    def metric(self, *names: str) -> float:
        """The sum of numbers of vLLM's own, such as ``num_requests_running``."""
        starts = tuple(f"vllm:{name}{{" for name in names)
        return sum(float(line.rsplit(" ", 1)[1]) for line in self._samples(starts))

    def sample(self, *names: str) -> float:
        """The sum of numbers of any other name, labels included."""
        lines = self._samples(tuple(f"{name} " for name in names))
        assert len(lines) == len(names), lines
        return sum(float(line.split()[1]) for line in lines)

    def _samples(self, starts: tuple[str, ...]) -> list[str]:
        text = httpx2.get(f"{self.base_url}/metrics", **HTTP).text
        return [line for line in text.splitlines() if line.startswith(starts)]

    def wait_for_sample(self, name: str, value: float) -> None:
        """Waits until that number is ``value``."""
        until(lambda: self.sample(name) == value, f"{value} of {name}")

    def wait_until_unhealthy(self) -> None:
        """Waits until ``/health`` fails, or nobody is there to answer."""
        until(lambda: not self._healthy(), "an unhealthy server")

    def _healthy(self) -> bool:
        with suppress(httpx2.TransportError):
            url = f"{self.base_url}/health"
            return httpx2.get(url, **HTTP).status_code == 200
        return False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the engines' processes meanwhile: what has not ended before does not end."""
        stopped = [psutil.Process(pid) for pid in self.engines()]
        try:
            for one in stopped:
                one.suspend()
            yield
        finally:
            for one in stopped:
                with suppress(psutil.NoSuchProcess):  # killed meanwhile
                    one.resume()

    def requests_in_engine(self) -> float:
        """Engine requests that are running or waiting."""
        return self.metric("num_requests_running", "num_requests_waiting")

    def wait_for_tokens(self, since: float) -> None:
        """Waits until its engine has drawn more than ``since`` tokens in all.

        Unlike requests that run, tokens that were drawn cannot be missed.
        """
        until(lambda: self.metric("generation_tokens_total") > since, "a token")

    def wait_for_candidates(self, least: int) -> None:
        """Waits until so many candidates run or wait; none ends while the engine is ``paused``."""

        def there() -> bool:
            names = ("cdserve_running_candidates", "cdserve_waiting_candidates")
            return self.sample(*names) >= least

        until(there, f"{least} candidates")

    def wait_until_idle(self) -> None:
        """Waits until the engine has no requests."""
        until(lambda: not self.requests_in_engine(), "no request in the engine")

    def _kill(self) -> None:
        """Kills it with vLLM's processes, which would outlive it."""
        with suppress(ProcessLookupError):  # it is gone already
            os.killpg(self._process.pid, signal.SIGKILL)

    def _wait_until_it_answers(self) -> None:
        until(lambda: self._process.poll() is not None or self._healthy(), "the server's start")
        assert self._process.poll() is None, f"the server did not start:\n{self.log()}"


def spawned(parent: psutil.Process) -> list[psutil.Process]:
    """The processes of vLLM's that another has started; those that started first come first.

    By how they were started too: under Ray, vLLM's titles are not always there.
    """
    found = []
    for child in sorted(parent.children(), key=psutil.Process.create_time):
        with suppress(psutil.NoSuchProcess):
            command = " ".join(child.cmdline())
            if command.startswith("VLLM::") or "multiprocessing.spawn" in command:
                found.append(child)
    return found


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
