"""How the answers of each API carry the report."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from vllm.entrypoints.openai.responses.api_router import _convert_stream_to_sse_events
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import VLLMError

from cdserve.api.streams import Ends, chunk_of
from cdserve.engine.context import AlignmentContext
from cdserve.errors import CdserveError, InternalError
from cdserve.failures import log_failure

_LOGGER = logging.getLogger("vllm.cdserve")


class Wire(ABC):
    """The answers of one request.

    Args:
        context: the request's policy, with its reports.
        model: the id the client asked for, which may be a preset's.
    """

    def __init__(self, context: AlignmentContext, model: str | None) -> None:
        self._context = context
        self._model = {} if model is None else {"model": model}
        self._told = 0

    @abstractmethod
    def whole(self, answer: Any) -> dict[str, Any]:
        """vLLM's answer as JSON, with the report."""

    @abstractmethod
    def events(self, stream: AsyncGenerator[Any, None]) -> AsyncGenerator[str, None]:
        """vLLM's stream as server-sent events, with the report at the end.

        With a trace, a decision rides on the first event with text once it is made.
        """

    def _report(self) -> dict[str, Any]:
        """The field with the report; none where none was asked for."""
        report = self._context.report()
        return {} if report is None else {"alignment": report}

    def _decisions(self) -> dict[str, Any]:
        """The field with the traced decisions made since the last time, if there are any."""
        made = self._context.traced(start=self._told)
        self._told += len(made)
        return {"alignment_decisions": made} if made else {}


class Choices(Wire):
    """Completions and chat: the report is on the last chunk that has choices."""

    def __init__(self, context: AlignmentContext, model: str | None, ends: Ends) -> None:
        super().__init__(context, model)
        self._ends = ends

    def whole(self, answer: Any) -> dict[str, Any]:
        return {**answer.model_dump(), **self._model, **self._report()}

    async def events(self, stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        async with aclosing(stream):
            async for event in stream:
                chunk = chunk_of(event)
                for end in self._ends.missing(chunk):
                    yield self._event(end)
                yield event if chunk is None else self._event(chunk)

    def _event(self, chunk: dict[str, Any]) -> str:
        last = self._ends.last(chunk)
        if chunk.get("choices"):
            chunk |= self._decisions()
            chunk |= self._report() if last else {}
        return f"data: {_json(chunk | self._model if 'model' in chunk else chunk)}\n\n"


class Messages(Wire):
    """Anthropic's Messages: the report is on the ``message_delta`` that ends the message."""

    def whole(self, answer: Any) -> dict[str, Any]:
        return {**answer.model_dump(exclude_none=True), **self._model, **self._report()}

    async def events(self, stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        async with aclosing(stream):
            async for event in stream:
                name, mark, data = event.partition("data: ")
                yield f"{name}{mark}{self._chunk(data)}\n\n" if data.startswith("{") else event

    def _chunk(self, data: str) -> str:
        chunk = json.loads(data)
        match chunk["type"]:
            case "message_start":
                chunk["message"] |= self._model
            case "content_block_delta":
                chunk |= self._decisions()
            case "message_delta":
                chunk |= self._decisions() | self._report()
        return _json(chunk)


class Responses(Wire):
    """OpenAI's Responses: the report is in the response, and so in what vLLM keeps of it."""

    _id = ""
    """The response's, once it is known; vLLM's log has the request under it."""

    def whole(self, answer: Any) -> dict[str, Any]:
        _put(answer, self._model | self._report())
        content: dict[str, Any] = answer.model_dump(mode="json", by_alias=True)
        return content

    async def events(self, stream: AsyncGenerator[Any, None]) -> AsyncGenerator[str, None]:
        sent = 0
        async with aclosing(_convert_stream_to_sse_events(self._marked(stream))) as events:
            try:
                async for event in events:
                    yield event
                    sent += 1
            except Exception as error:  # vLLM's other streams tell it, this one breaks off
                yield f"event: error\ndata: {_json(_error(self._expected(error), sent))}\n\n"

    def _expected(self, error: Exception) -> Exception:
        """The error as the client may read it. Logs it."""
        if isinstance(error, CdserveError | VLLMError):
            _LOGGER.error("a stream of a response failed", exc_info=error)
            return error
        details = self._context.objective.details
        return InternalError(log_failure("the request", error, details, self._id))

    async def _marked(self, stream: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        async with aclosing(stream):
            async for event in stream:
                self._mark(event)
                yield event

    def _mark(self, event: Any) -> None:
        done = event.type == "response.completed"
        if response := getattr(event, "response", None):
            self._id = response.id
            _put(response, self._model | (self._report() if done else {}))
        if done or event.type.endswith(".delta"):
            _put(event, self._decisions())


def _error(error: Exception, sequence_number: int) -> dict[str, Any]:
    """The last event of a stream of responses; with ``error``, at which OpenAI's client raises."""
    told = create_error_response(error).error.model_dump()
    return {
        **{"type": "error", "code": told["type"], "message": told["message"]},
        **{"param": told["param"], "sequence_number": sequence_number, "error": told},
    }


def _put(model: Any, fields: dict[str, Any]) -> None:
    """Sets fields of a Pydantic model that takes others than its own."""
    for name, value in fields.items():
        setattr(model, name, value)


def _json(chunk: dict[str, Any]) -> str:
    return json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
