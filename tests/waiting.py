"""How tests wait: for a condition. The limit only bounds a hang."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
HANG_SECONDS = 600.0
"""After which something that has not happened counts as hung, on any machine."""


def until(found: Callable[[], T], what: object = "") -> T:
    """Waits until something is there, and returns it.

    Raises:
        AssertionError: it is not there after ``HANG_SECONDS``; names ``what``.
    """
    ends = time.monotonic() + HANG_SECONDS
    while not (value := found()):
        assert time.monotonic() < ends, f"{what or found} has not come in {HANG_SECONDS} s"
        time.sleep(0.05)
    return value


async def turns(count: int = 20) -> None:
    """Lets all tasks of this event loop run as far as they can."""
    for _ in range(count):
        await asyncio.sleep(0)
