"""What cdserve adds to Ray Serve's HTTP proxies: a request whose replica died is sent to another.

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=cdserve.ray_serve.proxy:middlewares

in the environment of ``ray start``, or of ``serve run`` where that starts Ray.
"""

import asyncio
import logging

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdserve.api.messages import PATHS, to_anthropic_error

ATTEMPTS = 3
"""Replicas that one request is sent to. Few, since the request itself may be what kills them."""
_log = logging.getLogger("ray.serve")


def middlewares() -> list[Middleware]:
    """The middleware, as Ray's proxies ask for it."""
    return [Middleware(RetryOnDeath)]


class RetryOnDeath:
    """Sends a request again while its replicas die before the client has received anything.

    When a replica dies, the proxy returns without an answer, or stops within one. An answer of the
    replica's is forwarded, whatever its status. After ``ATTEMPTS`` replicas the answer is a 503.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the proxy, with a copy of the scope, which it changes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(receive)
        for attempt in range(1, ATTEMPTS + 1):
            response = _Response(send)
            await self._app(dict(scope), request.replayed(), response.send)
            if response.begun or request.left or _cancelled():
                return
            path = scope["path"]
            _log.warning(f"{path}: no answer, its replica died (attempt {attempt} of {ATTEMPTS})")
        await _lost(path)(scope, receive, send)


def _cancelled() -> bool:
    """Whether this call is to end, as when the proxy stops; Ray's does not raise then."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Request:
    """A request's messages, kept to be received again. The server bounds their size."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []

    @property
    def left(self) -> bool:
        """Whether the client has closed its connection."""
        return any(message["type"] == "http.disconnect" for message in self._messages)

    def replayed(self) -> Receive:
        """Receives all messages from the first, then those still to come."""
        position = 0

        async def receive() -> Message:
            nonlocal position
            if position == len(self._messages):
                self._messages.append(await self._receive())
            position += 1
            return self._messages[position - 1]

        return receive


class _Response:
    """A response that begins with its first body message: the status waits for it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self.begun = False

    async def send(self, message: Message) -> None:
        """Forwards a message, or keeps it if it is the status."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is not None:
            start, self._start = self._start, None
            self.begun = True
            await self._send(start)
        await self._send(message)


def _lost(path: str) -> JSONResponse:
    """A 503 in the shape of the path's API."""
    message = f"{ATTEMPTS} replicas died before they had answered this request"
    kind = "ServiceUnavailableError"
    error = {"message": message, "type": kind, "param": None, "code": 503}
    anthropic = path.endswith(PATHS)  # a prefix may stand before them
    body = to_anthropic_error(error, 503) if anthropic else {"error": error}
    return JSONResponse(body, 503, {"retry-after": "1"})
