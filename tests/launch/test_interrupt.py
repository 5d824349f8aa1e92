"""A signal before a server serves ends it at once, with at most one line."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.waiting import HANG_SECONDS, until

LINE = "cdserve: interrupted\n"
WATCHED = "import time; from cdserve import interrupts; interrupts.end_at_once()\n"
READY = "print('ready', flush=True)\n"
SLEEP = f"time.sleep({HANG_SECONDS})\n"


@contextmanager
def program(code: str) -> Iterator["subprocess.Popen[str]"]:
    """A Python program in its own process group that has printed ``ready``."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        # Shells ignore SIGINT in background processes.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupt(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGINT) -> str:
    """Sends a signal to the process group, as a terminal does; returns what the group prints."""
    os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=HANG_SECONDS)
    return output + errors


@pytest.mark.parametrize(
    ("number", "printed"), [(signal.SIGINT, LINE), (signal.SIGTERM, "")], ids=["SIGINT", "SIGTERM"]
)
def test_signal_during_the_engine_start_ends_the_server(
    number: signal.Signals, printed: str
) -> None:
    """vLLM waits for its engine inside this context, which ends a KeyboardInterrupt quietly."""
    waiting = (
        "import signal, zmq; from vllm.utils.network_utils import zmq_socket_ctx\n"
        "interrupts.prepare_to_spawn(); signal.signal(signal.SIGTERM, interrupts.end)\n"
        "with zmq_socket_ctx('inproc://engine', zmq.ROUTER, bind=True) as socket:\n"
        f"    {READY}"
        # As in vLLM: a signal just before a poll is handled after it.
        "    while True: socket.poll(timeout=100)\n"
    )
    with program(WATCHED + waiting) as process:
        assert interrupt(process, number) == printed
        assert process.returncode == 128 + number


def test_spawned_processes_end_with_an_interrupted_process_and_print_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "child.py").write_text(
        "import os, time\n"
        "def main(folder):\n"
        "    open(f'{folder}/{os.getpid()}', 'w').close()\n"
        f"    {SLEEP}"
    )
    spawning = (
        f"import multiprocessing, sys; sys.path.insert(0, {str(tmp_path)!r}); import child\n"
        "interrupts.prepare_to_spawn('try again')\n"
        "spawn = multiprocessing.get_context('spawn')\n"
        "lock = spawn.Lock()\n"  # needs multiprocessing's resource tracker
        f"spawn.Process(target=child.main, args=({str(tmp_path)!r},)).start()\n"
    )
    with program(WATCHED + spawning + READY + SLEEP) as process:
        names = until(lambda: [path.name for path in tmp_path.iterdir() if path.name.isdigit()])
        spawned = psutil.Process(int(names[0]))
        assert interrupt(process) == "cdserve: interrupted; try again\n"
        assert process.returncode == 130
        _, alive = psutil.wait_procs([spawned], HANG_SECONDS)
        assert alive == []


def test_interrupt_of_a_context_that_cleans_up_is_a_keyboard_interrupt() -> None:
    cleaning = (
        "try:\n"
        "    with interrupts.as_keyboard_interrupt():\n"
        f"        {READY}"
        f"        {SLEEP}"
        "except KeyboardInterrupt:\n"
        "    print('cleaned up', flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n"
    )
    with program(WATCHED + cleaning + SLEEP) as process:
        assert interrupt(process) == "cleaned up\n" + LINE
        assert process.returncode == 130


def test_ignored_interrupt_stays_ignored() -> None:
    code = (
        "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"{WATCHED}os.kill(os.getpid(), signal.SIGINT)\nprint('alive')"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=True)
    assert (done.stdout, done.stderr) == ("alive\n", "")
