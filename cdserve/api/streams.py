"""vLLM's chat and completion streams, completed by missing final chunks and raised errors."""

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request
from vllm.entrypoints.serve.utils.api_utils import should_include_usage

from cdserve.api.requests import AlignedRequestMixin
from cdserve.engine.context import AlignmentContext
from cdserve.errors import CdserveError

Handler = Callable[[Any, Request], Awaitable[Any]]
CHAT = "chat.completion.chunk"
COMPLETION = "text_completion"
_NO_LOGPROBS: Mapping[str, Mapping[str, Any]] = {
    CHAT: {"content": []},
    COMPLETION: {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []},
}


class ChoiceEnds:
    """Final chunks of a stream's choices: tracks those sent and builds those missing.

    vLLM sends no chunk for a choice without tokens. With a deadline that passes before the first
    token, such a choice still needs its final chunk.

    Args:
        context: the request's policy.
        request: the request, with its number of choices.
        raw_request: the HTTP request; vLLM's handler stores the answer's id in its state.
        kind: ``object`` of the chunks, ``CHAT`` or ``COMPLETION``.
    """

    def __init__(
        self,
        context: AlignmentContext,
        request: AlignedRequestMixin,
        raw_request: Request,
        kind: str,
    ) -> None:
        self._has_deadline = context.policy.deadline_ms is not None
        self._request = request
        self._raw_request = raw_request
        self._kind = kind
        self._open = set(range(request.choice_count))
        self._prompts = context.prompts
        self._created = int(time.time())

    def missing(self, chunk: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """Final chunks to send before ``chunk``; None stands for the end of the stream.

        They go before the first chunk without choices, such as the one with the usage.
        """
        if chunk is not None and (chunk.get("choices") or "error" in chunk):
            return []
        if chunk is not None:
            self._created = chunk.get("created", self._created)
        if not self._has_deadline:
            return []
        return [self._final_chunk(index) for index in sorted(self._open)]

    def record(self, chunk: Mapping[str, Any]) -> bool:
        """Records the choices that a chunk ends; returns whether none is left after it."""
        self._created = chunk.get("created", self._created)
        if "error" in chunk:
            self._open.clear()
        ended = {c["index"] for c in chunk.get("choices", ()) if c.get("finish_reason")}
        self._open -= ended
        return bool(ended) and not self._open

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """A chunk with these choices."""
        return {
            "id": self._raw_request.state.request_metadata.request_id,
            "object": self._kind,
            "created": self._created,
            "model": self._request.model,
            "choices": choices,
        }

    def _final_chunk(self, index: int) -> dict[str, Any]:
        request = self._request
        prompt = self._prompts[index * len(self._prompts) // request.choice_count]
        chunk = self.chunk([self._choice(index, prompt)])
        if self._has_usage():
            tokens = len(prompt)
            usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
            chunk["usage"] = usage
        return chunk

    def _choice(self, index: int, prompt: Sequence[int]) -> dict[str, Any]:
        chat = self._kind == CHAT
        logprobs = getattr(self._request, "logprobs", None)
        has_logprobs = logprobs is not None and logprobs is not False  # 0 asks for logprobs too
        has_token_ids = getattr(self._request, "return_token_ids", None)
        return {
            "index": index,
            **({"delta": {}} if chat else {"text": ""}),
            "logprobs": _NO_LOGPROBS[self._kind] if has_logprobs else None,
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": [] if has_token_ids else None,
            **({} if chat else {"prompt_token_ids": prompt if has_token_ids else None}),
        }

    def _has_usage(self) -> bool:
        """Whether every chunk of the stream contains the usage so far."""
        options = getattr(self._request, "stream_options", None)
        forced = self._raw_request.app.state.args.enable_force_include_usage
        continuous: bool = should_include_usage(options, forced)[1]
        return continuous


def parse_chunk(event: str) -> Any:
    """The chunk in a server-sent event; None for the event that ends the stream."""
    data = event.removeprefix("data: ").strip()
    return json.loads(data) if data.startswith("{") else None


def with_final_chunk(handler: Handler, context: AlignmentContext) -> Handler:
    """Wraps a chat handler so that each choice of its streams has a final chunk."""
    if context.policy.deadline_ms is None:
        return handler

    async def wrapped(request: AlignedRequestMixin, raw_request: Request) -> Any:
        answer = await handler(request, raw_request)
        if isinstance(answer, AsyncGenerator):
            return _completed(answer, ChoiceEnds(context, request, raw_request, CHAT))
        return answer

    return wrapped


async def _completed(
    stream: AsyncGenerator[str, None], ends: ChoiceEnds
) -> AsyncGenerator[str, None]:
    async with aclosing(stream):
        async for event in stream:
            chunk = parse_chunk(event)
            for end in ends.missing(chunk):
                ends.record(end)
                yield f"data: {json.dumps(end)}\n\n"
            if chunk is not None:
                ends.record(chunk)
            yield event


def raise_stream_errors(handler: Handler) -> Handler:
    """Wraps a handler so that its stream raises the error that vLLM sends as an event."""

    async def wrapped(request: AlignedRequestMixin, raw_request: Request) -> Any:
        answer = await handler(request, raw_request)
        return _raising(answer) if isinstance(answer, AsyncGenerator) else answer

    return wrapped


async def _raising(stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(stream):
        async for event in stream:
            if event.startswith('data: {"error"'):
                raise CdserveError(json.loads(event.removeprefix("data: "))["error"]["message"])
            yield event
