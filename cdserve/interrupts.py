"""Ctrl-C (SIGINT): a command ends with one line on stderr and status 130, without a traceback.

A KeyboardInterrupt in an import can be swallowed or printed, and vLLM swallows one while its engine
starts. So SIGINT is blocked and a thread waits for it. Processes inherit the blocked signal:
Ctrl-C in a terminal reaches only this process, which ends the others.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGINT = {signal.SIGINT}
_watcher: "_Watcher | None" = None


class _Watcher(threading.Thread):
    """Ends this process at SIGINT."""

    def __init__(self) -> None:
        super().__init__(name="cdserve-interrupt", daemon=True)
        self.hint = ""
        self._stopped = False

    def run(self) -> None:
        signal.sigwait(_SIGINT)
        if not self._stopped:
            end(signal.SIGINT, hint=self.hint)

    def stop(self) -> None:
        self._stopped = True
        assert self.ident is not None
        signal.pthread_kill(self.ident, signal.SIGINT)
        self.join()


def end_at_once() -> None:
    """Makes SIGINT end this process and those that multiprocessing started, from now on.

    Called in the main thread, before other threads start. Does nothing if SIGINT is ignored, as in
    the background of a shell script.
    """
    global _watcher
    if _watcher is None and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)  # earlier threads do not block it
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGINT)
        _watcher = _Watcher()
        _watcher.start()


def prepare_to_spawn(hint: str = "") -> None:
    """Blocks SIGINT in processes that multiprocessing starts from now on.

    Its resource tracker, started by the first of them, would unblock SIGINT for all others. It also
    would print warnings about the semaphores of an interrupted process, which it removes.

    Args:
        hint: what to do after an interrupt, for the line on stderr.
    """
    if _watcher is not None:
        from multiprocessing import resource_tracker

        filters = os.environ.get("PYTHONWARNINGS")
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [filters, "ignore:resource_tracker"]))
        resource_tracker.ensure_running()
        if filters is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = filters
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGINT)
        _watcher.hint = hint


def release() -> None:
    """Unblocks SIGINT in the main thread. The handler remains ``end`` until it is replaced."""
    global _watcher
    if _watcher is not None:
        _watcher.stop()
        _watcher = None
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGINT)


@contextmanager
def as_keyboard_interrupt() -> Iterator[None]:
    """Raises KeyboardInterrupt at SIGINT in this context, which has something to clean up."""
    if _watcher is None:
        yield
        return
    release()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        end_at_once()


def end(number: int, _: object = None, *, hint: str = "") -> None:
    """Ends this process and those that multiprocessing started; a signal handler.

    Nothing is cleaned up: files appear when they are complete, and the next server removes shared
    tables that no process holds.
    """
    from multiprocessing import active_children  # imported early, it warns at exit of semaphores

    for process in active_children():
        process.kill()
    if number == signal.SIGINT:
        report(hint)
    os._exit(128 + number)


def report(hint: str = "") -> None:
    """Prints the line about an interrupt; in a terminal it starts after the echoed ``^C``."""
    start = "\n" if sys.stderr.isatty() else ""
    os.write(2, f"{start}cdserve: interrupted{hint and f'; {hint}'}\n".encode())
