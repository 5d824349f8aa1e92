"""Errors in Anthropic's format, for the routes of its API."""

import json
import re
from http import HTTPStatus
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = ("/v1/messages", "/v1/messages/count_tokens")
_ERROR_EVENT = re.compile(rb"^event: error\ndata: (.*)$", re.MULTILINE)
"""An error event, also behind a comment or another event in the same part of a stream."""
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's error types by status; other 4xx and 5xx statuses have a generic type."""


class AnthropicErrorMiddleware:
    """Middleware that converts errors on Anthropic's routes, in responses and in streams.

    The format is ``{"type": "error", "error": {"type", "message"}}``, with an inner type by status.
    Other fields of an OpenAI error, such as ``param``, stay in the inner object.

    Args:
        app: the app, authentication included.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request; other routes pass unchanged."""
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            send = _ErrorConverter(send) if path in PATHS else send
        await self._app(scope, receive, send)


class _ErrorConverter:
    """Forwards a response; buffers an error's body until it is complete, then converts it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
        elif self._start is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_error(self._start)
        elif "body" in message:
            await self._send({**message, "body": _ERROR_EVENT.sub(_convert_event, message["body"])})
        else:
            await self._send(message)

    async def _send_error(self, start: Message) -> None:
        body = json.dumps(to_anthropic_error(_inner_error(self._body), start["status"])).encode()
        headers = MutableHeaders(raw=list(start["headers"]))
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(body))
        await self._send({**start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body})


def _convert_event(event: re.Match[bytes]) -> bytes:
    """An error event in Anthropic's format; the type is that of a 500, since the status is sent."""
    error = to_anthropic_error(_inner_error(event[1]), HTTPStatus.INTERNAL_SERVER_ERROR)
    return b"event: error\ndata: " + json.dumps(error).encode()


def _inner_error(body: bytes) -> Any:
    """The value of ``error``: an object, or a string from vLLM's authentication."""
    try:
        content = json.loads(body)
    except ValueError:
        return None
    return content.get("error") if isinstance(content, dict) else None


def to_anthropic_error(error: Any, status: int) -> dict[str, Any]:
    """Converts an error to Anthropic's format.

    Args:
        error: the value of ``error`` in OpenAI's format, or a message.
        status: HTTP status of the response, which determines the inner type.
    """
    if not isinstance(error, dict):
        error = {"message": error if isinstance(error, str) else HTTPStatus(status).phrase}
    generic = "api_error" if status >= 500 else "invalid_request_error"
    return {"type": "error", "error": {**error, "type": _TYPES.get(status, generic)}}
