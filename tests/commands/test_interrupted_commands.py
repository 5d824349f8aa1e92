"""Ctrl-C ends each command with one line on stderr and status 130."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cdserve.demo.tiny import MODEL_DIR
from tests.forked import Forked
from tests.waiting import HANG_SECONDS, until

HEAD = ["--head", "linear", "--method", "fudge"]
PROMPTS = '{"prompt": "Review: kettle"}\n'


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe, which a command waits for as long as nothing is written."""
    os.mkfifo(path := tmp_path / "pipe")
    return path


Process = Forked | subprocess.Popen[bytes]


@contextmanager
def interrupted(
    folder: Path, pipe: Path, *arguments: str, forked: bool = True
) -> Iterator[Process]:
    """A command that was interrupted while it or its server read the pipe, after its end.

    Args:
        folder: where the command's output goes.
        forked: whether vLLM is imported before; if so, a usual end prints leaks of its extensions.
    """
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
        process: Process
        if forked:
            process = Forked("cdserve", arguments, os.environ, stdout, stderr)
        else:
            process = subprocess.Popen(
                [sys.executable, "-m", "cdserve", *arguments],
                stdout=stdout,
                stderr=stderr,
                process_group=0,
                # Shells ignore SIGINT in background processes.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
    try:
        writer = writer_of(pipe, process, folder)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(HANG_SECONDS)
        yield process
        os.close(writer)
    finally:
        process.kill()


def printed(folder: Path) -> tuple[str, list[str]]:
    """A command's stdout, and the lines on stderr without a remark of vLLM's on Triton on CPUs."""
    errors = (folder / "stderr").read_text().splitlines()
    remark = "Triton is installed"
    return (folder / "stdout").read_text(), [line for line in errors if not line.startswith(remark)]


def writer_of(pipe: Path, process: Process, folder: Path) -> int:
    """A descriptor for writing, once a process reads the pipe."""

    def opened() -> list[int]:
        assert process.poll() is None, printed(folder)
        return [writer] if (writer := try_to_open(pipe)) is not None else []

    return until(opened, "a reader of the pipe")[0]


def try_to_open(pipe: Path) -> int | None:
    """A descriptor for writing; None if no process reads the pipe."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--config", "PIPE"),
        ("eval", "--prompts", "PIPE", "--out", "OUT", "--policy", "none"),
        (
            *("collect", "--prompts", "PIPE", "--out", "OUT", "--policy", "best_of_n n=2"),
            *("--format", "candidates"),
        ),
        (
            *("heads", "train", "--model", str(MODEL_DIR), "--out", "OUT", *HEAD),
            *("--prompts", "prompts.jsonl", "--config", "PIPE", "--rewards", "brief"),
        ),
    ],
    ids=["serve", "eval", "collect", "train"],
)
def test_interrupt_while_a_command_reads_its_input_prints_one_line(
    arguments: tuple[str, ...], pipe: Path, tmp_path: Path
) -> None:
    places = {"PIPE": str(pipe), "OUT": str(tmp_path / "out")}
    words = (places.get(word, word) for word in arguments)
    with interrupted(tmp_path, pipe, *words) as process:
        assert printed(tmp_path) == ("", ["cdserve: interrupted"])
        assert process.returncode == 130


def test_interrupt_while_the_server_of_an_evaluation_starts_ends_the_server(
    pipe: Path, tmp_path: Path
) -> None:
    (prompts := tmp_path / "prompts.jsonl").write_text(PROMPTS)
    out = tmp_path / "out"
    flags = ["--prompts", str(prompts), "--out", str(out), "--policy", "best_of_n n=2"]
    resume = f"run the same command again to resume from {out}"
    flags += ["--config", str(pipe)]
    with interrupted(tmp_path, pipe, "eval", *flags, forked=False) as process:
        assert printed(tmp_path) == ("", [f"cdserve: interrupted; {resume}"])
        assert process.returncode == 130
    until(lambda: try_to_open(pipe) is None, "the end of the server")
