"""Writers of each API's answers, which add the report."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from vllm.entrypoints.openai.responses.api_router import _convert_stream_to_sse_events
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.serve.utils.sse_keep_alive import (
    SSE_KEEP_ALIVE_COMMENT,
    with_sse_keep_alive,
)
from vllm.exceptions import VLLMClientError, VLLMError

from cdserve.api.streams import ChoiceEnds, parse_chunk
from cdserve.engine.context import AlignmentContext
from cdserve.errors import CdserveError, InternalError
from cdserve.failures import log_failure

_LOGGER = logging.getLogger("vllm.cdserve")
DRAFTS_SECONDS = 0.15
"""Seconds of silence after which a stream with ``report: "live"`` shows candidates under way."""


class AnswerWriter(ABC):
    """Base of the writers, for the answer to one request.

    Args:
        context: the request's policy, with its reports.
        model: model id in the client's request, which may be a preset's.
    """

    def __init__(self, context: AlignmentContext, model: str | None) -> None:
        self._context = context
        self._model = {} if model is None else {"model": model}
        self._decisions_sent = 0

    @abstractmethod
    def body(self, answer: Any) -> dict[str, Any]:
        """vLLM's answer as JSON, with the report."""

    @abstractmethod
    def events(self, stream: AsyncGenerator[Any, None]) -> AsyncGenerator[str, None]:
        """vLLM's stream as server-sent events, with the report at the end.

        With a trace, a decision is part of the first event with text after it.
        """

    def _report(self) -> dict[str, Any]:
        """The field with the report; empty if the policy asks for none."""
        report = self._context.report()
        return {} if report is None else {"alignment": report}

    def _decisions(self) -> dict[str, Any]:
        """The field with the traced decisions since the last call; empty if there are none."""
        decisions = self._context.traced(start=self._decisions_sent)
        self._decisions_sent += len(decisions)
        return {"alignment_decisions": decisions} if decisions else {}


class CompletionsWriter(AnswerWriter):
    """Completions and chat completions: the report is in the last chunk with choices."""

    def __init__(self, context: AlignmentContext, model: str | None, ends: ChoiceEnds) -> None:
        super().__init__(context, model)
        self._ends = ends

    def body(self, answer: Any) -> dict[str, Any]:
        return {**answer.model_dump(), **self._model, **self._report()}

    async def events(self, stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        # An interval of 0 leaves the stream as it is.
        interval = 0.0 if self._context.drafts is None else DRAFTS_SECONDS
        async with aclosing(with_sse_keep_alive(stream, interval)) as events:
            async for event in events:
                if event == SSE_KEEP_ALIVE_COMMENT:
                    if drafts := await self._drafts():
                        yield drafts
                    continue
                chunk = parse_chunk(event)
                for end in self._ends.missing(chunk):
                    yield self._event(end)
                yield event if chunk is None else self._event(chunk)

    async def _drafts(self) -> str | None:
        """An event without choices, with the candidates that have grown; None if none have."""
        news = self._context.drafts and await self._context.drafts.news()
        return self._event(self._ends.chunk([]) | {"alignment_candidates": news}) if news else None

    def _event(self, chunk: dict[str, Any]) -> str:
        last = self._ends.record(chunk)
        if chunk.get("choices"):
            chunk |= self._decisions()
            chunk |= self._report() if last else {}
        return f"data: {_json(chunk | self._model if 'model' in chunk else chunk)}\n\n"


class MessagesWriter(AnswerWriter):
    """Anthropic's Messages: the report is in the ``message_delta`` that ends the message."""

    def body(self, answer: Any) -> dict[str, Any]:
        return {**answer.model_dump(exclude_none=True), **self._model, **self._report()}

    async def events(self, stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        async with aclosing(stream):
            async for event in stream:
                name, mark, data = event.partition("data: ")
                yield f"{name}{mark}{self._extended(data)}\n\n" if data.startswith("{") else event

    def _extended(self, data: str) -> str:
        chunk = json.loads(data)
        match chunk["type"]:
            case "message_start":
                chunk["message"] |= self._model
            case "content_block_delta":
                chunk |= self._decisions()
            case "message_delta":
                chunk |= self._decisions() | self._report()
        return _json(chunk)


class ResponsesWriter(AnswerWriter):
    """OpenAI's Responses: the report is in the response, also in the copy that vLLM stores."""

    _id = ""
    """Id of the response, once known; vLLM logs the request under it."""

    def body(self, answer: Any) -> dict[str, Any]:
        _set_fields(answer, self._model | self._report())
        content: dict[str, Any] = answer.model_dump(mode="json", by_alias=True)
        return content

    async def events(self, stream: AsyncGenerator[Any, None]) -> AsyncGenerator[str, None]:
        sent = 0
        async with aclosing(_convert_stream_to_sse_events(self._extended(stream))) as events:
            try:
                async for event in events:
                    yield event
                    sent += 1
            except Exception as error:  # unlike vLLM's other streams, this one sends no error event
                yield f"event: error\ndata: {_json(_error_event(self._public(error), sent))}\n\n"

    def _public(self, error: Exception) -> Exception:
        """Logs an error of the server, and returns the one that the client may see."""
        if isinstance(error, CdserveError | VLLMError):
            if not isinstance(error, VLLMClientError):
                _LOGGER.error("the stream of a response failed", exc_info=error)
            return error
        details = self._context.objective.details
        return InternalError(log_failure("the request", error, details, self._id))

    async def _extended(self, stream: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        async with aclosing(stream):
            async for event in stream:
                self._extend(event)
                yield event

    def _extend(self, event: Any) -> None:
        completed = event.type == "response.completed"
        if response := getattr(event, "response", None):
            self._id = response.id
            _set_fields(response, self._model | (self._report() if completed else {}))
        if completed or event.type.endswith(".delta"):
            _set_fields(event, self._decisions())


def _error_event(error: Exception, sequence_number: int) -> dict[str, Any]:
    """The last event of a failed stream; OpenAI's client raises on the field ``error``."""
    content = create_error_response(error).error.model_dump()
    return {
        **{"type": "error", "code": content["type"], "message": content["message"]},
        **{"param": content["param"], "sequence_number": sequence_number, "error": content},
    }


def _set_fields(model: Any, fields: dict[str, Any]) -> None:
    """Sets fields of a pydantic model that allows extra ones."""
    for name, value in fields.items():
        setattr(model, name, value)


def _json(chunk: dict[str, Any]) -> str:
    return json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
