"""Aborts what still runs in the engine once the deadline has passed."""

import asyncio
from collections.abc import Iterator, Set
from contextlib import contextmanager

from cdserve.engine.context import AlignmentContext
from cdserve.engine.slots import EARLY
from cdserve.engine.vllm import EngineClient

AGAIN = 0.02
"""Seconds between aborts: the engine does not know a request that is just being added."""


@contextmanager
def ended_at_deadline(
    engine: EngineClient, context: AlignmentContext, alive: Set[str]
) -> Iterator[None]:
    """Aborts the engine requests that are alive when the deadline passes; they keep their tokens.

    Args:
        alive: ids of the requests; each leaves the set once it has ended.
    """
    if context.seconds_left is None:
        yield
        return
    ending = asyncio.create_task(_end(engine, context, alive))
    try:
        yield
    finally:
        ending.cancel()


async def _end(engine: EngineClient, context: AlignmentContext, alive: Set[str]) -> None:
    await asyncio.sleep((context.seconds_left or 0.0) + EARLY)
    while True:
        await engine.abort(list(alive))
        await asyncio.sleep(AGAIN)
