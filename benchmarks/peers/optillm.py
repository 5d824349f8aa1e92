"""optillm's proxy in front of the server, and its ratings."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from benchmarks.peers.environments import OPTILLM
from benchmarks.server import free_port, wait_until_healthy

RATING = "Rate the above response:"


class Proxy:
    """optillm with approach ``bon`` and default settings except ``n``; a context manager.

    The proxy logs its conversations, since its answers do not contain the ratings.

    Args:
        server: URL of the server behind the proxy.
        n: number of candidates.
    """

    def __init__(self, server: str, n: int) -> None:
        self._port = free_port()
        self.base_url = f"http://127.0.0.1:{self._port}"
        self._flags = ["--base-url", f"{server}/v1", "--best-of-n", str(n)]

    def __enter__(self) -> "Proxy":
        self._folder = tempfile.TemporaryDirectory()
        folder = self._folder.name
        log = Path(folder, "log")
        with log.open("w") as out:
            self._process = subprocess.Popen(
                [
                    *(OPTILLM.python.with_name("optillm"), "--approach", "bon", "--log", "error"),
                    *("--log-conversations", "--conversation-log-dir", folder),
                    *("--host", "127.0.0.1", "--port", str(self._port), *self._flags),
                ],
                cwd=folder,
                env={"PATH": os.environ["PATH"], "HOME": folder, "OPENAI_API_KEY": "-"},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        wait_until_healthy(self.base_url, self._process, log)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def ratings(self) -> tuple[int, int]:
        """How many ratings it asked the model for, and how many of these are numbers."""
        asked = numbers = 0
        for path in Path(self._folder.name).glob("*.jsonl"):
            for line in path.read_text(encoding="utf-8").splitlines():
                for call in json.loads(line)["provider_calls"]:
                    if call["request"]["messages"][-1]["content"] == RATING:
                        asked += 1
                        (choice,) = call["response"]["choices"]
                        numbers += _is_number(choice["message"]["content"])
        return asked, numbers


def _is_number(text: str) -> bool:
    try:
        float(text.strip())
    except ValueError:
        return False
    return True
