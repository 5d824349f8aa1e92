"""Middleware for unexpected exceptions and for errors on Anthropic's routes."""

import logging
from argparse import Namespace
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineGenerateError

from cdserve.api import errors
from cdserve.api.messages import AnthropicErrorMiddleware
from cdserve.api.unexpected import UnexpectedErrorMiddleware
from cdserve.errors import OverloadError

SECRET = "/srv/models/secret said: A fine kettle."
RAISED: dict[str, Exception] = {
    "unexpected": KeyError(SECRET),
    "value": ValueError("top_k is odd"),
    "vllm": VLLMValidationError("max_tokens is odd", parameter="max_tokens"),
    "engine": EngineGenerateError("it died"),
    "http": HTTPException(404, "nothing is here"),
    "full": OverloadError("no room", status=503, retry_after=2),
    "mine": OverloadError("no more room of yours", status=429, retry_after=2),
}
PATHS = ["/v1/messages", "/v1/messages/count_tokens"]
PATH = pytest.mark.parametrize("path", PATHS)


def app(answer: Any, details: str = "log") -> FastAPI:
    """App whose routes return or raise ``answer``, with vLLM's and cdserve's error handlers."""
    application = FastAPI()
    settings = SimpleNamespace(error_details=details)
    cdserve = SimpleNamespace(default=SimpleNamespace(settings=settings))
    application.state.args = Namespace(log_error_stack=False, cdserve=cdserve)
    application.state.server, application.state.engine_client = None, SimpleNamespace(errored=False)

    async def route() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    for path in (*PATHS, "/v1/completions"):
        application.post(path)(route)
    errors.install(application)
    init_exception_handler(application)
    application.add_middleware(AuthenticationMiddleware, tokens=["sk"])
    application.add_middleware(UnexpectedErrorMiddleware)
    application.add_middleware(AnthropicErrorMiddleware)
    return application


async def post(path: str, answer: Any, key: str = "sk", details: str = "log") -> httpx2.Response:
    transport = httpx2.ASGITransport(app(answer, details), raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.post(path, headers={"authorization": f"Bearer {key}"})


@PATH
@pytest.mark.parametrize(
    ("raised", "status", "kind", "message"),
    [
        ("unexpected", 500, "api_error", "failed with KeyError"),
        ("value", 400, "invalid_request_error", "top_k is odd"),
        ("vllm", 400, "invalid_request_error", "max_tokens is odd"),
        ("engine", 500, "api_error", "it died"),
        ("http", 404, "not_found_error", "nothing is here"),
        ("full", 503, "overloaded_error", "no room"),
        ("mine", 429, "rate_limit_error", "no more room of yours"),
    ],
)
async def test_error_on_an_anthropic_route_has_anthropics_format(
    path: str, raised: str, status: int, kind: str, message: str
) -> None:
    answer = await post(path, RAISED[raised])
    assert answer.status_code == status
    assert int(answer.headers["content-length"]) == len(answer.content)
    body = answer.json()
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert message in body["error"]["message"]


@PATH
async def test_wrong_key_on_an_anthropic_route_has_anthropics_format(path: str) -> None:
    answer = await post(path, {}, key="no")
    assert answer.status_code == 401
    error = {"message": "Unauthorized", "type": "authentication_error"}
    assert answer.json() == {"type": "error", "error": error}


@PATH
@pytest.mark.parametrize(
    "answer", [PlainTextResponse("<html>", 413), JSONResponse(["no", "object"], 413)]
)
async def test_non_json_error_on_an_anthropic_route_has_anthropics_format(
    path: str, answer: Any
) -> None:
    body = (await post(path, answer)).json()
    assert body["error"]["type"] == "request_too_large"
    assert body["error"]["message"]


async def test_converted_error_keeps_its_headers() -> None:
    answer = await post("/v1/messages", RAISED["full"])
    assert answer.headers["retry-after"] == "2"


async def test_error_body_in_several_parts_is_converted_as_one() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b'{"error": {"mess', b'age": "odd", "type": "x"', b"}}"):
            yield piece

    answer = await post("/v1/messages", StreamingResponse(pieces(), 400))
    error = {"message": "odd", "type": "invalid_request_error"}
    assert answer.json() == {"type": "error", "error": error}


async def test_error_on_another_route_is_unchanged() -> None:
    answer = await post("/v1/completions", RAISED["vllm"])
    assert answer.json() == {
        "error": {
            "message": "max_tokens is odd (parameter=max_tokens)",
            "type": "BadRequestError",
            "param": "max_tokens",
            "code": 400,
        }
    }


@pytest.mark.parametrize("before", ["", ":\n\n", ": keep-alive\n\n:\n\n"])
async def test_error_event_in_a_stream_has_anthropics_type(before: str) -> None:
    delta = 'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n'
    error = '{"type":"error","error":{"type":"internal_error","message":"it died"}}'

    async def events() -> AsyncIterator[str]:
        yield delta
        yield f"{before}event: error\ndata: {error}\n\n"
        yield "data: [DONE]\n\n"

    answer = await post("/v1/messages", StreamingResponse(events()))
    converted = '{"type": "error", "error": {"type": "api_error", "message": "it died"}}'
    assert answer.text == f"{delta}{before}event: error\ndata: {converted}\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("path", [*PATHS, "/v1/completions"])
async def test_unexpected_exception_is_logged_under_the_id_in_the_response(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await post(path, RAISED["unexpected"])
    assert answer.status_code == 500
    assert "kettle" not in answer.text
    error_id = answer.json()["error"]["message"].partition("error id ")[2][:16]
    (record,) = (one for one in caplog.records if one.levelno == logging.ERROR)
    assert f"error id {error_id}: the request failed with KeyError" in record.message
    assert SECRET in record.message


async def test_response_has_the_exceptions_text_with_error_details_client() -> None:
    answer = await post("/v1/completions", RAISED["unexpected"], details="client")
    assert "A fine kettle." in answer.json()["error"]["message"]


async def test_exception_after_the_stream_has_begun_is_reraised() -> None:
    async def breaks() -> AsyncIterator[str]:
        yield "data: {}\n\n"
        raise KeyError(SECRET)

    answer = StreamingResponse(breaks())
    transport = httpx2.ASGITransport(app(answer))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
        with pytest.raises(KeyError):
            await http.post("/v1/completions", headers={"authorization": "Bearer sk"})
