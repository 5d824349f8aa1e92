"""Calls that are cancelled, told to the app as clients that have left."""

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LEFT: Message = {"type": "http.disconnect"}


class CancelledAsDisconnect:
    """Middleware for a server that cancels a call once its client has left, as Ray Serve does.

    vLLM's handlers wait for the message that a client has left; if they are cancelled instead, what
    they have begun runs on.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the app; if cancelled, waits until the app has ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting: asyncio.Task[Message] | None = None
        answering = False

        async def received() -> Message:
            nonlocal waiting
            waiting = waiting or asyncio.create_task(_message(receive))
            await asyncio.wait((waiting, left), return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                return _LEFT
            message, waiting = waiting.result(), None
            return message

        async def sent(message: Message) -> None:
            nonlocal answering
            answering = True
            if not left.done():
                await send(message)

        call = asyncio.create_task(_call(self._app, scope, received, sent))
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            left.set_result(None)
            if answering:  # a stream is closed by cancelling it
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
