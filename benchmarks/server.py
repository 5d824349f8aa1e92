"""A cdserve of our own on a free port, for a benchmark."""

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import httpx2


class Server:
    """Starts ``cdserve serve`` and stops it at the end.

    Args:
        config: the settings' YAML file.
        flags: vLLM's flags.
    """

    def __init__(self, config: Path, *flags: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}"
        self._command = [
            *(sys.executable, "-m", "cdserve", "serve", "--config", str(config)),
            *("--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log", *flags),
        ]

    def __enter__(self) -> "Server":
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen(self._command, stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if httpx2.get(f"{self.base_url}/health").status_code == 200:
                    return self
            except httpx2.TransportError:
                time.sleep(0.5)
        self.process.kill()
        raise RuntimeError(f"the server did not start:\n{Path(self.log.name).read_text()[-4000:]}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
