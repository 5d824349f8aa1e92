"""Chat and completion streams of vLLM's, made whole: how choices end, and what went wrong."""

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request
from vllm.entrypoints.serve.utils.api_utils import should_include_usage

from cdserve.api.requests import Aligned
from cdserve.engine.context import AlignmentContext
from cdserve.errors import CdserveError

Handler = Callable[[Any, Request], Awaitable[Any]]
CHAT = "chat.completion.chunk"
COMPLETION = "text_completion"
_NO_LOGPROBS: Mapping[str, Mapping[str, Any]] = {
    CHAT: {"content": []},
    COMPLETION: {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []},
}


class Ends:
    """The ends of a stream's choices.

    vLLM sends no chunk for a choice without tokens. There is one where the deadline passed before
    anything was drawn, and its end is made here.

    Args:
        context: the request's policy.
        request: its ``choices`` is how many ends there are.
        raw_request: vLLM's handler leaves the answer's id in its state.
        kind: ``CHAT`` or ``COMPLETION``, what the chunks are.
    """

    def __init__(
        self, context: AlignmentContext, request: Aligned, raw_request: Request, kind: str
    ) -> None:
        self._bounded = context.policy.deadline_ms is not None
        self._request = request
        self._raw_request = raw_request
        self._kind = kind
        self._going = set(range(request.choices))
        self._prompts = context.prompts
        self._created = int(time.time())

    def missing(self, chunk: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """The chunks that belong before one without choices, or before the stream's end (None)."""
        if chunk is not None and (chunk.get("choices") or "error" in chunk):
            return []
        if chunk is not None:
            self._created = chunk.get("created", self._created)
        return [self._end(index) for index in sorted(self._going)] if self._bounded else []

    def last(self, chunk: Mapping[str, Any]) -> bool:
        """Whether it has the end of the last choice. Takes note of the choices that it ends."""
        self._created = chunk.get("created", self._created)
        if "error" in chunk:
            self._going.clear()
        ended = {one["index"] for one in chunk.get("choices", ()) if one.get("finish_reason")}
        self._going -= ended
        return bool(ended) and not self._going

    def _end(self, index: int) -> dict[str, Any]:
        request = self._request
        prompt = self._prompts[index * len(self._prompts) // request.choices]
        chunk = {
            "id": self._raw_request.state.request_metadata.request_id,
            "object": self._kind,
            "created": self._created,
            "model": request.model,
            "choices": [self._choice(index, prompt)],
        }
        if self._counts_usage():
            tokens = len(prompt)
            usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
            chunk["usage"] = usage
        return chunk

    def _choice(self, index: int, prompt: Sequence[int]) -> dict[str, Any]:
        chat = self._kind == CHAT
        logprobs = getattr(self._request, "logprobs", None)
        wanted = logprobs is not None and logprobs is not False  # 0 is a number of them
        given = getattr(self._request, "return_token_ids", None)
        return {
            "index": index,
            **({"delta": {}} if chat else {"text": ""}),
            "logprobs": _NO_LOGPROBS[self._kind] if wanted else None,
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": [] if given else None,
            **({} if chat else {"prompt_token_ids": prompt if given else None}),
        }

    def _counts_usage(self) -> bool:
        """Whether every chunk of the stream has the usage so far."""
        options = getattr(self._request, "stream_options", None)
        forced = self._raw_request.app.state.args.enable_force_include_usage
        continuous: bool = should_include_usage(options, forced)[1]
        return continuous


def chunk_of(event: str) -> Any:
    """The chunk in a server-sent event; None for the event that ends the stream."""
    data = event.removeprefix("data: ").strip()
    return json.loads(data) if data.startswith("{") else None


def ending(handler: Handler, context: AlignmentContext) -> Handler:
    """A chat handler whose streams have the ends that are missing."""

    async def ended(request: Aligned, raw_request: Request) -> Any:
        answer = await handler(request, raw_request)
        if isinstance(answer, AsyncGenerator):
            return _ended(answer, Ends(context, request, raw_request, CHAT))
        return answer

    return ended


async def _ended(stream: AsyncGenerator[str, None], ends: Ends) -> AsyncGenerator[str, None]:
    async with aclosing(stream):
        async for event in stream:
            chunk = chunk_of(event)
            for end in ends.missing(chunk):
                ends.last(end)
                yield f"data: {json.dumps(end)}\n\n"
            if chunk is not None:
                ends.last(chunk)
            yield event


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
