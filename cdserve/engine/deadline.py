"""The deadline: once it has passed, the engine is told to end what still runs."""

import asyncio
from collections.abc import Iterator, Set
from contextlib import contextmanager

from cdserve.engine.run import AlignmentRun
from cdserve.engine.slots import EARLY
from cdserve.engine.vllm import EngineClient

_AGAIN = 0.02
"""Seconds after which it is told again: a request that is being added is not known to it yet."""


@contextmanager
def ended_at_deadline(engine: EngineClient, run: AlignmentRun, alive: Set[str]) -> Iterator[None]:
    """Ends the engine's requests that are alive when the deadline passes; they keep their tokens.

    Args:
        alive: their ids; each leaves the set once it has ended.
    """
    if run.left is None:
        yield
        return
    ending = asyncio.create_task(_end(engine, run, alive))
    try:
        yield
    finally:
        ending.cancel()


async def _end(engine: EngineClient, run: AlignmentRun, alive: Set[str]) -> None:
    await asyncio.sleep((run.left or 0.0) + EARLY)
    while True:
        await engine.abort(list(alive))
        await asyncio.sleep(_AGAIN)
