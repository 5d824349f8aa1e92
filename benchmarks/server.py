"""Servers on free ports for benchmarks, and their counters."""

import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import TracebackType

import httpx2
import psutil
from prometheus_client.parser import text_string_to_metric_families

START_SECONDS = 300
_TOLD = 8000
"""Characters of a server's log to print if a benchmark fails."""


def free_port() -> int:
    """A free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_healthy(base_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until a server that has just been started answers.

    Raises:
        RuntimeError: it ended, or took longer than START_SECONDS; with the end of its log.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(f"{base_url}/health").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.5)
    process.kill()
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}")


def runs_model(process: psutil.Process) -> bool:
    """Whether a process runs the model, by vLLM's process title or by the start method.

    Under Ray, vLLM does not always set the title.
    """
    try:
        command = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    titled = command.startswith(("VLLM::Engine", "VLLM::Worker"))
    return titled or "multiprocessing.spawn" in command


def totals(metrics: str, label: str = "") -> Counter[tuple[str, str]]:
    """The samples of ``/metrics`` by name and value of ``label``, summed over all other labels."""
    counts = Counter[tuple[str, str]]()
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            counts[sample.name, sample.labels.get(label, "")] += sample.value
    return counts


class Server:
    """Runs ``cdserve serve``; a context manager.

    Args:
        config: YAML settings.
        flags: vLLM's flags.
    """

    def __init__(self, config: Path, *flags: str) -> None:
        port = free_port()
        self.base_url = f"http://127.0.0.1:{port}"
        self._command = [
            *(sys.executable, "-m", "cdserve", "serve", "--config", str(config)),
            *("--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log", *flags),
        ]

    def __enter__(self) -> "Server":
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen(self._command, stdout=self.log, stderr=subprocess.STDOUT)
        wait_until_healthy(self.base_url, self.process, Path(self.log.name))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            print(Path(self.log.name).read_text()[-_TOLD:], file=sys.stderr)
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
