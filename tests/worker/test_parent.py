"""Processes whose parent is killed: they end, whatever they do, where they were told to follow."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cdserve.worker.parent import ENDS_WITH_PARENT, watch_parent
from tests.waiting import HANG_SECONDS, until

PARENT = "from tests.worker.test_parent import parent; parent({!r})"


def child(kind: str, ready: Path) -> None:
    """A process of vLLM's: it handles SIGTERM, or is busy with what a signal cannot interrupt."""
    handler = {"ends": signal.SIG_DFL, "hangs": signal.SIG_IGN}[kind]
    signal.signal(signal.SIGTERM, handler)
    watch_parent()
    ready.write_text(str(os.getpid()))
    time.sleep(10 * HANG_SECONDS)


def parent(arguments: tuple[str, str]) -> None:
    """Starts the child as vLLM does."""
    kind, ready = arguments
    one = multiprocessing.get_context("spawn").Process(target=child, args=(kind, Path(ready)))
    one.start()
    one.join()


@pytest.fixture
def started() -> Iterator[list[psutil.Process]]:
    """Processes that a test has started; killed at its end."""
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        if process.is_running():
            process.kill()


def start(kind: str, folder: Path, told: bool, started: list[psutil.Process]) -> None:
    """Appends a parent and its child to ``started``."""
    ready = folder / "pid"
    environment = {**os.environ, ENDS_WITH_PARENT: "1"}
    if not told:  # others of this process may have been
        del environment[ENDS_WITH_PARENT]
    command = [sys.executable, "-c", PARENT.format((kind, str(ready)))]
    started.append(psutil.Process(subprocess.Popen(command, env=environment).pid))
    until(lambda: ready.exists() and ready.read_text(), "the child")
    started.append(psutil.Process(int(ready.read_text())))


@pytest.mark.parametrize("kind", ["ends", "hangs"])
def test_child_ends_after_its_parent_is_killed(
    kind: str, tmp_path: Path, started: list[psutil.Process]
) -> None:
    start(kind, tmp_path, True, started)
    killed, left = started
    killed.kill()
    left.wait(HANG_SECONDS)
    assert not left.is_running()


def test_child_without_the_setting_outlives_its_parent(
    tmp_path: Path, started: list[psutil.Process]
) -> None:
    start("ends", tmp_path, False, started)
    killed, left = started
    killed.kill()
    with pytest.raises(psutil.TimeoutExpired):
        left.wait(3)


def test_child_keeps_running_while_its_parent_lives(
    tmp_path: Path, started: list[psutil.Process]
) -> None:
    start("ends", tmp_path, True, started)
    with pytest.raises(psutil.TimeoutExpired):
        started[1].wait(3)
