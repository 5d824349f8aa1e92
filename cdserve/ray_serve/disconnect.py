"""Turns cancelled calls into client disconnects for the app."""

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DISCONNECT: Message = {"type": "http.disconnect"}


class CancelledAsDisconnect:
    """Middleware for servers that cancel a call when its client disconnects, such as Ray Serve.

    vLLM's handlers wait for the disconnect message. If they are cancelled instead, their engine
    requests keep running.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the app; if cancelled, sends a disconnect and waits until the app returns."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        disconnected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting: asyncio.Task[Message] | None = None
        responding = False

        async def receive_or_disconnect() -> Message:
            nonlocal waiting
            waiting = waiting or asyncio.create_task(_message(receive))
            await asyncio.wait((waiting, disconnected), return_when=asyncio.FIRST_COMPLETED)
            if disconnected.done():
                return _DISCONNECT
            message, waiting = waiting.result(), None
            return message

        async def send_if_connected(message: Message) -> None:
            nonlocal responding
            responding = True
            if not disconnected.done():
                await send(message)

        call = asyncio.create_task(
            _call(self._app, scope, receive_or_disconnect, send_if_connected)
        )
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            disconnected.set_result(None)
            if responding:  # a stream is closed by cancelling it
                call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            raise
        finally:
            if waiting is not None:
                waiting.cancel()


async def _message(receive: Receive) -> Message:
    return await receive()


async def _call(app: ASGIApp, *arguments: Any) -> None:
    await app(*arguments)
