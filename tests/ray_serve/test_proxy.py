"""The middleware of Ray's proxies, around proxies whose replicas die at a chosen point."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdserve.ray_serve.deployment import SilentAfterEngineDeath
from cdserve.ray_serve.proxy import ATTEMPTS, RetryOnDeath, middlewares
from tests.waiting import turns

BODY = [
    {"type": "http.request", "body": b"one ", "more_body": True},
    {"type": "http.request", "body": b"two", "more_body": False},
]
START = {"type": "http.response.start", "status": 200, "headers": []}


def chunk(text: str, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


class Proxy:
    """A fake of Ray's proxy: forwards the messages of each replica, and returns when one dies."""

    def __init__(self, *replicas: list[Message]) -> None:
        self.replicas = list(replicas)
        self.read: list[bytes] = []
        """The request body as received by each replica."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["path"] == "/v1/completions"
        scope["path"] = "/changed"
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.read.append(body)
        for message in self.replicas.pop(0):
            await send(message)


async def answered(proxy: ASGIApp, path: str = "/v1/completions") -> list[Message]:
    """The messages that the client receives."""
    sent: list[Message] = []
    coming = iter(BODY)

    async def receive() -> Message:
        return next(coming)

    async def send(message: Message) -> None:
        sent.append(message)

    await RetryOnDeath(proxy)({"type": "http", "path": path}, receive, send)
    return sent


@pytest.mark.parametrize("last", [[], [START]], ids=["nothing", "a status without a body"])
async def test_request_without_response_is_retried(last: list[Message]) -> None:
    proxy = Proxy([], last, [START, chunk("answer", more=False)])
    assert await answered(proxy) == [START, chunk("answer", more=False)]
    assert proxy.read == [b"one two"] * 3


async def test_request_with_started_response_is_not_retried() -> None:
    proxy = Proxy([START, chunk("begun")], [START, chunk("other", more=False)])
    assert await answered(proxy) == [START, chunk("begun")]
    assert len(proxy.read) == 1


@pytest.mark.parametrize("status", [400, 404, 413, 429, 500, 503])
async def test_error_response_of_the_application_is_forwarded(status: int) -> None:
    error = [{**START, "status": status}, chunk("error", more=False)]
    proxy = Proxy(error, [START, chunk("other", more=False)])
    assert await answered(proxy) == error


@pytest.mark.parametrize(
    ("path", "shape", "kind"),
    [
        ("/v1/completions", None, "ServiceUnavailableError"),
        ("/prefix/v1/completions", None, "ServiceUnavailableError"),
        ("/v1/messages", "error", "overloaded_error"),
        ("/prefix/v1/messages", "error", "overloaded_error"),
        ("/v1/messages/count_tokens", "error", "overloaded_error"),
        ("/prefix/v1/messages/count_tokens", "error", "overloaded_error"),
    ],
)
async def test_last_failed_attempt_gives_503(path: str, shape: str | None, kind: str) -> None:
    attempts = 0

    async def dies(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal attempts
        attempts += 1

    start, body = await answered(dies, path)
    assert attempts == ATTEMPTS
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    error_body = json.loads(body["body"])
    assert error_body["error"]["type"] == kind
    assert error_body["error"]["code"] == 503
    assert "3 replicas died" in error_body["error"]["message"]
    assert error_body.get("type") == shape


async def test_disconnect_during_a_retry_ends_the_retry() -> None:
    left = asyncio.Event()
    attempts: list[list[str]] = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        """The first replica dies; the second reads until the client disconnects."""
        attempts.append(received := [])
        for _ in BODY:
            received.append((await receive())["type"])
        if len(attempts) == 2:
            left.set()
            received.append((await receive())["type"])

    sent = await _leave_at(left, proxy)
    assert sent == []
    assert attempts == [["http.request"] * 2, ["http.request"] * 2 + ["http.disconnect"]]


async def test_request_of_a_disconnected_client_is_not_retried() -> None:
    left = asyncio.Event()
    left.set()
    attempts = 0

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal attempts
        attempts += 1
        while (await receive())["type"] != "http.disconnect":
            pass

    assert await _leave_at(left, proxy) == []
    assert attempts == 1


async def test_cancelled_call_is_not_retried() -> None:
    """Ray's proxy does not raise when it is cancelled: it returns without an answer."""
    attempts = 0
    waiting = asyncio.Event()

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal attempts
        attempts += 1
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    call = asyncio.create_task(answered(proxy))
    await waiting.wait()
    call.cancel()
    assert await call == []
    assert attempts == 1


async def test_other_protocols_pass_through_unchanged() -> None:
    seen: list[Any] = []

    async def proxy(*call: Any) -> None:
        seen.append(call)

    call = ({"type": "websocket"}, None, None)
    await RetryOnDeath(proxy)(*call)  # type: ignore[arg-type]
    assert seen == [call]


@pytest.mark.parametrize("begun", [False, True])
async def test_replica_starts_no_response_after_engine_death(begun: bool) -> None:
    """The response waits until the process exits; a started stream ends with the error."""
    engine: Any = SimpleNamespace(errored=False)
    messages = [START, chunk("block"), chunk("error", more=False)]
    sent: list[Message] = []

    async def answers(scope: Scope, receive: Receive, send: Send) -> None:
        for i, message in enumerate(messages):
            engine.errored = i == 2 or not begun
            await send(message)

    async def send(message: Message) -> None:
        sent.append(message)

    receive: Any = None
    call = asyncio.create_task(
        SilentAfterEngineDeath(answers, engine)({"type": "http"}, receive, send)
    )
    await turns()
    assert sent == (messages if begun else [])
    assert call.done() == begun
    call.cancel()


def test_ray_accepts_the_middleware_callback() -> None:
    from ray.serve._private.http_util import validate_http_proxy_callback_return

    accepted = validate_http_proxy_callback_return(middlewares())
    assert [type(middleware) for middleware in accepted] == [Middleware]


async def _leave_at(left: asyncio.Event, proxy: ASGIApp) -> list[Message]:
    """A receive function of a client that disconnects at an event."""
    sent: list[Message] = []
    coming = iter(BODY)

    async def receive() -> Message:
        for message in coming:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await RetryOnDeath(proxy)({"type": "http", "path": "/v1/completions"}, receive, send)
    return sent
