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
from tests.waiting import HANG_SECONDS, until

HEAD = ["--head", "linear", "--method", "fudge"]
PROMPTS = '{"prompt": "Review: kettle"}\n'


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe, which a command waits for as long as nothing is written."""
    os.mkfifo(path := tmp_path / "pipe")
    return path


@contextmanager
def command(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A command in its own process group."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cdserve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        # Shells ignore SIGINT in background processes.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def writer_of(pipe: Path, process: "subprocess.Popen[str]") -> int:
    """A descriptor for writing, once a process reads the pipe."""

    def opened() -> list[int]:
        assert process.poll() is None, process.communicate()
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
    with command(*(places.get(word, word) for word in arguments)) as process:
        writer = writer_of(pipe, process)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=HANG_SECONDS)
        os.close(writer)
    assert (output, lines(errors)) == ("", ["cdserve: interrupted"])
    assert process.returncode == 130


def test_interrupt_while_the_server_of_an_evaluation_starts_ends_the_server(
    pipe: Path, tmp_path: Path
) -> None:
    (prompts := tmp_path / "prompts.jsonl").write_text(PROMPTS)
    out = tmp_path / "out"
    flags = ["--prompts", str(prompts), "--out", str(out), "--policy", "best_of_n n=2"]
    with command("eval", *flags, "--config", str(pipe)) as process:
        writer = writer_of(pipe, process)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=HANG_SECONDS)
        os.close(writer)
    resume = f"run the same command again to resume from {out}"
    assert (output, lines(errors)) == ("", [f"cdserve: interrupted; {resume}"])
    assert process.returncode == 130
    until(lambda: try_to_open(pipe) is None, "the end of the server")


def lines(errors: str) -> list[str]:
    """The lines on stderr, without a remark of vLLM's about Triton on CPUs."""
    return [line for line in errors.splitlines() if not line.startswith("Triton is installed")]
