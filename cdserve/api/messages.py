"""Anthropic's API: errors in the shape its clients read, whoever made them."""

import json
from http import HTTPStatus
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = ("/v1/messages", "/v1/messages/count_tokens")
_ERROR_EVENT = b"event: error\n"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's names; of all other statuses the type says whose fault it was."""


class AnthropicErrors:
    """Middleware that gives errors of Anthropic's API its shape, in answers and in streams.

    ``{"type": "error", "error": {"type", "message"}}``, the inner type by the status. An error of
    OpenAI's shape keeps its other fields beside, such as ``param``.

    Args:
        app: what answers, authentication included.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leaves other paths alone."""
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            send = _Shaped(send) if path in PATHS else send
        await self._app(scope, receive, send)


class _Shaped:
    """Sends an answer on; an error once its body is whole."""

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
                await self._answer(self._start)
        elif (body := message.get("body", b"")).startswith(_ERROR_EVENT):
            await self._send({**message, "body": _event(body)})
        else:
            await self._send(message)

    async def _answer(self, start: Message) -> None:
        body = json.dumps(shaped(_error(self._body), start["status"])).encode()
        headers = MutableHeaders(raw=list(start["headers"]))
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(body))
        await self._send({**start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body})


def _event(event: bytes) -> bytes:
    """The event of an error in a stream, which has begun with a status of its own."""
    name, mark, rest = event.partition(b"data: ")
    data, end, after = rest.partition(b"\n\n")
    told = json.dumps(shaped(_error(data), HTTPStatus.INTERNAL_SERVER_ERROR)).encode()
    return name + mark + told + end + after


def _error(body: bytes) -> Any:
    """What is under ``error``: an object as a rule, of vLLM's authentication a text."""
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found.get("error") if isinstance(found, dict) else None


def shaped(error: Any, status: int) -> dict[str, Any]:
    """An error as Anthropic's clients read it.

    Args:
        error: what is under ``error`` in OpenAI's shape, or its message alone.
        status: the answer's, which the inner type follows.
    """
    if not isinstance(error, dict):
        error = {"message": error if isinstance(error, str) else HTTPStatus(status).phrase}
    usual = "api_error" if status >= 500 else "invalid_request_error"
    return {"type": "error", "error": {**error, "type": _TYPES.get(status, usual)}}
