"""Limit on the size of request bodies, checked before a body is in memory."""

from http import HTTPStatus

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdserve.api.errors import error_response

_TOO_LARGE = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class BodyLimitMiddleware:
    """Middleware that rejects bodies of more than ``limit`` bytes with a 413.

    Args:
        app: the app that handles all other requests.
        limit: maximum size in bytes.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit
        self._message = f"the request body is larger than this server's limit of {limit} bytes"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Checks the declared length first, then the bytes received."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > self._limit:
            refusal = error_response(self._message, _TOO_LARGE.phrase, _TOO_LARGE)
            await refusal(scope, receive, send)
            return
        remaining = self._limit

        async def receive_limited() -> Message:
            nonlocal remaining
            message = await receive()
            remaining -= len(message.get("body", b""))
            if remaining < 0:
                raise HTTPException(_TOO_LARGE, self._message)
            return message

        await self._app(scope, receive_limited, send)
