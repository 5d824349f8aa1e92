"""Batches of every kind of row, each run once a session, in processes of their own."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import HANG_SECONDS

from .mode import environment

ROOT = Path(__file__).parents[2]
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1"}


class Running:
    """A run of ``tests.v2.run``.

    Args:
        folder: where it writes.
        v2: whether on model runner V2.
        arguments: its own.
    """

    def __init__(self, folder: Path, v2: bool, *arguments: str) -> None:
        self._out, self._log = folder / "out.json", folder / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.v2.run", str(self._out), *arguments],
                cwd=ROOT,
                env=environment(v2) | IN_PROCESS,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def made(self) -> dict[str, Any]:
        """What came of it; waits for it.

        Raises:
            AssertionError: it failed.
        """
        assert self._process.wait(HANG_SECONDS) == 0, self._log.read_text()[-6000:]
        made: dict[str, Any] = json.loads(self._out.read_text())
        return made

    def stop(self) -> None:
        """Ends it, if it runs."""
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def start(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[..., Running]:
    """Starts a run; the same one where it is asked for again."""

    @cache
    def started(v2: bool, *arguments: str) -> Running:
        run = Running(tmp_path_factory.mktemp("run"), v2, *arguments)
        request.addfinalizer(run.stop)
        return run

    return started


@pytest.fixture(scope="session")
def v2(start: Callable[..., Running]) -> Running:
    """All kinds on V2, without CUDA graphs and with PIECEWISE ones."""
    return start(True, "--graphs", "PIECEWISE")


@pytest.fixture(scope="session")
def v1(start: Callable[..., Running], v2: Running) -> Running:
    """All kinds on V1; both run at once."""
    return start(False)


@pytest.fixture(scope="session")
def full(start: Callable[..., Running]) -> Running:
    """The kinds of a server without members, also with CUDA graphs of the whole forward pass."""
    return start(True, "--heads", "--graphs", "FULL_AND_PIECEWISE", "FULL_DECODE_ONLY")


@pytest.fixture(scope="session")
def synchronous(start: Callable[..., Running]) -> Running:
    """All kinds on V2, each step's output read before the next step."""
    return start(True, "--synchronous")
