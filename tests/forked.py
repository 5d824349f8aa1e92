"""Python programs forked from a process that has imported vLLM.

That import takes most of the processor time of a server's start. Engines, which vLLM spawns, still
import it themselves.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import IO, Any

from tests.waiting import HANG_SECONDS

_IMPORTED = ("cdserve.cli", "cdserve.launch.application", "cdserve.testing.engine")


class Forked:
    """``python -m MODULE ARGUMENTS`` in a session of its own, used as a ``Popen``.

    Args:
        module: a package with a ``__main__``, or a module.
        arguments: the program's arguments.
        environment: all of its environment variables. What vLLM and PyTorch read from them at
            import is as in this process.
        stdout, stderr: files that it prints to.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stdout: IO[str],
        stderr: IO[str],
    ) -> None:
        self._parent = _parent()
        program = {"module": module, "arguments": list(arguments), "environment": dict(environment)}
        self.pid: int = self._parent.ask(program, [stdout.fileno(), stderr.fileno()])
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit status; None while the program runs."""
        if self.returncode is None:
            self.returncode = self._parent.ask({"pid": self.pid})
        return self.returncode

    def wait(self, timeout: float = HANG_SECONDS) -> int:
        """Waits for the exit status.

        Raises:
            subprocess.TimeoutExpired: the program still runs after ``timeout`` seconds.
        """
        ends = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > ends:
                raise subprocess.TimeoutExpired("forked", timeout)
            time.sleep(0.02)
        return status

    def terminate(self) -> None:
        """Sends SIGTERM, unless the program has ended."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL, unless the program has ended."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class _Parent:
    """The process that programs are forked from; it ends with this one."""

    def __init__(self) -> None:
        self._socket, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._asked = 0
        with end:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked", str(end.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[end.fileno()],
                start_new_session=True,
                # Shells ignore SIGINT in background processes.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def ask(self, request: Mapping[str, Any], files: Sequence[int] = ()) -> Any:
        """Sends a request; returns the answer."""
        with self._lock:
            self._asked += 1
            message = json.dumps([self._asked, request]).encode()
            socket.send_fds(self._socket, [message], files)
            number = 0
            while number < self._asked:  # an interrupt may have left an answer to an earlier one
                message = self._socket.recv(1 << 16)
                assert message, "the process that programs are forked from has ended"
                number, answer = json.loads(message)
        return answer


@cache
def _parent() -> _Parent:
    return _Parent()


def main() -> None:
    """Answers requests until the socket closes; in a forked process, runs the program."""
    before = dict(os.environ)
    for name in _IMPORTED:
        importlib.import_module(name)
    set_by_imports = {key: value for key, value in os.environ.items() if before.get(key) != value}
    gc.freeze()  # a collection would copy all pages
    requests = socket.socket(fileno=int(sys.argv[1]))
    statuses: dict[int, int] = {}
    while True:
        message, files, _, _ = socket.recv_fds(requests, 1 << 20, 2)
        if not message:
            return
        number, request = json.loads(message)
        if (pid := request.get("pid")) is not None:
            if pid not in statuses and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                statuses[pid] = os.waitstatus_to_exitcode(ended[1])
            requests.send(json.dumps([number, statuses.get(pid)]).encode())
        elif (pid := os.fork()) == 0:
            break
        else:
            statuses.pop(pid, None)  # of an earlier process with this id
            for file in files:
                os.close(file)
    os.setsid()
    requests.send(json.dumps([number, os.getpid()]).encode())  # its group may be signalled now
    requests.close()
    for file, descriptor in zip(files, (1, 2), strict=True):
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    # The imports' variables come last: titles of processes need the first one to stay in its place.
    os.environ.update(request["environment"])
    for key, value in set_by_imports.items():
        os.environ.setdefault(key, value)
    paths = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in paths if path and path not in sys.path]
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
