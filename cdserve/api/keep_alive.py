"""Comments on silent streams, so that no proxy or client closes the connection."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from vllm.entrypoints.serve.utils.sse_keep_alive import SSE_KEEP_ALIVE_COMMENT, with_sse_keep_alive

_END = ":\n\n"
"""An empty comment. ``vllm bench serve`` strips the line ends from each read and would glue the
next event to a comment that arrived alone; an empty comment before the event ends it."""


async def keep_alive(
    events: AsyncGenerator[str, None], interval: float
) -> AsyncGenerator[str, None]:
    """Yields the events of a stream, and a comment after each ``interval`` of silence.

    Args:
        events: server-sent events.
        interval: silence before the first event or between two, in seconds.
    """
    commented = False
    async with aclosing(with_sse_keep_alive(events, interval)) as kept:
        async for event in kept:
            ends = commented and event != SSE_KEEP_ALIVE_COMMENT
            yield _END + event if ends else event
            commented = event == SSE_KEEP_ALIVE_COMMENT
