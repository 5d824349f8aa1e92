"""Calls that the server cancels when the client disconnects, as Ray Serve does."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.types import ASGIApp, Message
from vllm.entrypoints.serve.utils.api_utils import with_cancellation

from cdserve.ray_serve.disconnect import CancelledAsDisconnect
from tests.waiting import HANG_SECONDS


class Call:
    """A POST request to an app, from a client that sends nothing after the request."""

    def __init__(self) -> None:
        self.started, self.go, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.sent: list[Message] = []
        self.app = FastAPI()
        self.app.post("/whole")(with_cancellation(self.whole))
        self.app.post("/stream")(self.stream)

    async def whole(self, body: dict[str, Any], raw_request: Request) -> dict[str, Any]:
        """Answers with the body after ``go`` is set."""
        try:
            self.started.set()
            await self.go.wait()
        finally:
            self.ended.set()
        return body

    async def stream(self, body: dict[str, Any]) -> StreamingResponse:
        """Streams a line, and another one after ``go`` is set."""

        async def lines() -> AsyncIterator[str]:
            try:
                yield "first\n"
                self.started.set()
                await self.go.wait()
                yield "last\n"
            finally:
                self.ended.set()

        return StreamingResponse(lines())

    def start(self, app: ASGIApp, path: str) -> asyncio.Task[None]:
        """Calls the app."""
        requests = iter([{"type": "http.request", "body": b'{"a":1}', "more_body": False}])

        async def receive() -> Message:
            for request in requests:
                return request
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            self.sent.append(message)

        async def call() -> None:
            headers = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
            scope |= {"query_string": b"", "asgi": {"version": "3.0", "spec_version": "2.4"}}
            await app(scope, receive, send)

        return asyncio.create_task(call())

    @property
    def body(self) -> bytes:
        """The response body so far."""
        return b"".join(message.get("body", b"") for message in self.sent)


@pytest.mark.parametrize("path", ["/whole", "/stream"])
async def test_cancelled_call_ends_the_handler(path: str) -> None:
    call = Call()
    task = call.start(CancelledAsDisconnect(call.app), path)
    await call.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, HANG_SECONDS)
    assert call.ended.is_set()
    assert b"last" not in call.body


async def test_handler_keeps_running_without_the_middleware() -> None:
    call = Call()
    task = call.start(call.app, "/whole")
    await call.started.wait()
    task.cancel()
    await asyncio.wait([task])
    assert not call.ended.is_set()
    call.go.set()
    await asyncio.wait_for(call.ended.wait(), HANG_SECONDS)


@pytest.mark.parametrize(("path", "body"), [("/whole", b'{"a":1}'), ("/stream", b"first\nlast\n")])
async def test_call_without_cancellation_is_answered(path: str, body: bytes) -> None:
    call = Call()
    call.go.set()
    await asyncio.wait_for(call.start(CancelledAsDisconnect(call.app), path), HANG_SECONDS)
    assert call.sent[0]["status"] == 200
    assert call.body == body
