"""Empty events on silent streams, so that no proxy or client closes the connection."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from vllm.entrypoints.serve.utils.sse_keep_alive import SSE_KEEP_ALIVE_COMMENT, with_sse_keep_alive

EMPTY_EVENT = "\n\n"
"""An event without data, which a client must ignore.

Every client meets empty lines between events. Comments, which vLLM sends, break several clients:
``vllm bench serve`` strips the line ends from each read and glues the next chunk to the comment;
``sglang.bench_serving`` parses the comment as JSON.
"""


async def keep_alive(
    events: AsyncGenerator[str, None], interval: float
) -> AsyncGenerator[str, None]:
    """Yields the events of a stream, and ``EMPTY_EVENT`` after each ``interval`` of silence.

    Args:
        events: server-sent events.
        interval: silence before the first event or between two, in seconds.
    """
    async with aclosing(with_sse_keep_alive(events, interval)) as kept:
        async for event in kept:
            yield EMPTY_EVENT if event == SSE_KEEP_ALIVE_COMMENT else event
