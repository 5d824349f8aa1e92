"""Ends a vLLM process whose parent has died.

vLLM's processes end when their parent tells them to; a killed parent does not. The engine would
keep its memory, and a worker that waits in a collective would also keep its core.
"""

import multiprocessing
import os
import signal
import threading
import time

ENDS_WITH_PARENT = "_CDSERVE_ENDS_WITH_PARENT"
"""Environment variable that is set in vLLM processes started by cdserve."""
_LOOK = 1.0
"""Seconds between checks of the parent."""
_GRACE = 5.0
"""Seconds to end after a SIGTERM; a worker in a collective cannot."""


def watch_parent() -> None:
    """Ends this process soon after its parent has ended, if ``ENDS_WITH_PARENT`` is set.

    Does nothing in a process that multiprocessing did not start.
    """
    parent = multiprocessing.parent_process()
    if ENDS_WITH_PARENT in os.environ and parent is not None:
        threading.Thread(
            target=_follow, args=(parent.pid,), name="cdserve-parent", daemon=True
        ).start()


def _follow(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.kill(os.getpid(), number)
        time.sleep(_GRACE)
