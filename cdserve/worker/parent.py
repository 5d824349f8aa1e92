"""Ends a process of vLLM's that has lost its parent.

vLLM's processes end when their parent tells them to, and a killed parent tells them nothing: the
engine would keep its memory, and a worker that waits for another in a collective its core too.
"""

import multiprocessing
import os
import signal
import threading
import time

ENDS_WITH_PARENT = "_CDSERVE_ENDS_WITH_PARENT"
"""Environment variable: set where vLLM's processes belong to a process of cdserve's."""
_LOOK = 1.0
"""Seconds between two looks at whether the parent is alive."""
_GRACE = 5.0
"""Seconds to end in, after a SIGTERM; a worker in a collective cannot."""


def watch_parent() -> None:
    """Ends this process soon after its parent has ended; only where it was told to in advance.

    A process that multiprocessing has not started has nobody to follow.
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
