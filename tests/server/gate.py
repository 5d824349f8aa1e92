"""A gate in a served reward: responses above a length wait there until the test lets them pass."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from tests.waiting import until

FOLDER = "CDTEST_GATE"
"""The environment variable that tells a server where its gate's files are."""
OPEN = 10**9


class Gate:
    """The gate as the test sees it. It is open except within ``closed``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.allow(OPEN)

    def allow(self, characters: int) -> None:
        """Lets responses of at most so many characters pass."""
        made = self.folder / "made"
        made.write_text(str(characters))
        made.replace(self.folder / "allowed")

    @contextmanager
    def closed(self, above: int = 0) -> Iterator[None]:
        """Holds responses of more characters; opens at the end, however that comes."""
        for old in self.folder.glob("waits-*"):
            old.unlink()
        self.allow(above)
        try:
            yield
        finally:
            self.allow(OPEN)

    def waiting(self) -> Counter[int]:
        """Scorings that have waited since it was closed, by process."""
        return Counter(int(one.name.split("-")[1]) for one in self.folder.glob("waits-*"))

    def until_wait(self, count: int) -> Counter[int]:
        """Waits until so many scorings wait."""
        until(lambda: self.waiting().total() >= count, f"{count} scorings at the gate")
        return self.waiting()


def gated(prompt: str, response: str) -> float:
    """A reward: the response's length, once the gate lets it pass."""
    folder = Path(os.environ[FOLDER])
    if not _passes(folder, response):
        (folder / f"waits-{os.getpid()}-{uuid4()}").touch()
        while not _passes(folder, response):
            time.sleep(0.01)
    return float(len(response))


def _passes(folder: Path, response: str) -> bool:
    return len(response) <= int((folder / "allowed").read_text())
