"""Chat and completion streams of vLLM's, made whole: how choices end, and what went wrong."""

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from fastapi import Request

from cdserve.api.requests import Aligned
from cdserve.engine.run import AlignmentRun
from cdserve.errors import CdserveError

Handler = Callable[[Any, Request], Awaitable[Any]]
CHAT = "chat.completion.chunk"
COMPLETION = "text_completion"


def ending(handler: Handler, run: AlignmentRun, kind: str) -> Handler:
    """A handler with the end of a choice without tokens, which vLLM's leaves out.

    There is one where the deadline passed before anything was drawn.

    Args:
        kind: ``CHAT`` or ``COMPLETION``, what its chunks are.
    """
    if run.policy.deadline_ms is None:
        return handler

    async def ended(request: Aligned, raw_request: Request) -> Any:
        answer = await handler(request, raw_request)
        if isinstance(answer, AsyncGenerator):
            return _ended(answer, request, raw_request, kind)
        return answer

    return ended


async def _ended(
    stream: AsyncGenerator[str, None], request: Aligned, raw_request: Request, kind: str
) -> AsyncGenerator[str, None]:
    going = set(range(request.choices))
    async with aclosing(stream):
        async for event in stream:
            data = event.removeprefix("data: ").strip()
            chunk = json.loads(data) if data.startswith("{") else {"choices": []}  # [DONE]
            if "error" in chunk:
                going.clear()
            elif chunk["choices"]:
                going -= {one["index"] for one in chunk["choices"] if one["finish_reason"]}
            else:  # nor has the usage choices
                for index in sorted(going):
                    yield f"data: {json.dumps(_end(index, request, raw_request, kind))}\n\n"
                going.clear()
            yield event


def _end(index: int, request: Aligned, raw_request: Request, kind: str) -> dict[str, Any]:
    text: dict[str, Any] = {"delta": {}} if kind == CHAT else {"text": ""}
    return {
        "id": raw_request.state.request_metadata.request_id,
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "choices": [{"index": index, **text, "logprobs": None, "finish_reason": "length"}],
    }


def raising(handler: Handler) -> Handler:
    """A handler whose stream raises the error that vLLM's tells in an event."""

    async def raised(request: Aligned, raw_request: Request) -> Any:
        answer = await handler(request, raw_request)
        return _raised(answer) if isinstance(answer, AsyncGenerator) else answer

    return raised


async def _raised(stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(stream):
        async for event in stream:
            if event.startswith('data: {"error"'):
                raise CdserveError(json.loads(event.removeprefix("data: "))["error"]["message"])
            yield event
