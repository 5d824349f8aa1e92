"""Middleware for Ray Serve's HTTP proxies: retries a request whose replica died on another.

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=cdserve.ray_serve.proxy:middlewares

in the environment of ``ray start``, or of ``serve run`` if it starts Ray.
"""

import asyncio
import logging

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdserve.api.messages import PATHS, to_anthropic_error

ATTEMPTS = 3
"""Maximum number of replicas per request; low, since the request may be the cause of death."""
_log = logging.getLogger("ray.serve")


def middlewares() -> list[Middleware]:
    """The middleware, in the form that Ray's proxies import."""
    return [Middleware(RetryOnDeath)]


class RetryOnDeath:
    """Retries a request if its replica dies before the client has received anything.

    If a replica dies, the proxy returns without a response or stops within one. A response of the
    replica is forwarded, whatever its status. After ``ATTEMPTS`` replicas the response is a 503.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the proxy with a copy of the scope, which the proxy modifies."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(receive)
        for attempt in range(1, ATTEMPTS + 1):
            response = _Response(send)
            await self._app(dict(scope), request.replayed(), response.send)
            if response.started or request.disconnected or _cancelled():
                return
            path = scope["path"]
            _log.warning(f"{path}: no response, the replica died (attempt {attempt} of {ATTEMPTS})")
        await _unavailable(path)(scope, receive, send)


def _cancelled() -> bool:
    """Whether this call was cancelled, as when the proxy stops; Ray's proxy does not raise then."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Request:
    """The messages of a request, kept for retries. The server bounds their size."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []

    @property
    def disconnected(self) -> bool:
        """Whether the client has closed its connection."""
        return any(message["type"] == "http.disconnect" for message in self._messages)

    def replayed(self) -> Receive:
        """A receive function that replays all messages and then waits for further ones."""
        position = 0

        async def receive() -> Message:
            nonlocal position
            if position == len(self._messages):
                self._messages.append(await self._receive())
            position += 1
            return self._messages[position - 1]

        return receive


class _Response:
    """A response that starts with its first body message; the status is held until then."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self.started = False

    async def send(self, message: Message) -> None:
        """Forwards a message; holds the status message."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is not None:
            start, self._start = self._start, None
            self.started = True
            await self._send(start)
        await self._send(message)


def _unavailable(path: str) -> JSONResponse:
    """A 503 in the error format of the path's API."""
    message = f"{ATTEMPTS} replicas died before responding to this request"
    kind = "ServiceUnavailableError"
    error = {"message": message, "type": kind, "param": None, "code": 503}
    anthropic = path.endswith(PATHS)  # the path may have a prefix
    body = to_anthropic_error(error, 503) if anthropic else {"error": error}
    return JSONResponse(body, 503, {"retry-after": "1"})
