"""cdserve's errors as answers of OpenAI's shape, and of Anthropic's where that is the API."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse

from cdserve.errors import CdserveError, OverloadError, PolicyError
from cdserve.metrics import REFUSED

_ANTHROPIC = "/v1/messages"
_NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients try a 5xx again by themselves unless they are told not to."""


def install(app: FastAPI) -> None:
    """Has the app answer what cdserve raises, and what Starlette does, in this shape."""
    app.add_exception_handler(CdserveError, _answer)
    app.add_exception_handler(HTTPException, _framework)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    """A PolicyError is a 400 that names the field; an OverloadError says when to try again.

    All others are a 500, not to be tried again: the candidates it took are lost.
    """
    path = request.url.path
    if isinstance(error, PolicyError):
        REFUSED.inc()
        return answer(path, str(error), "BadRequestError", 400, param=error.param)
    if isinstance(error, OverloadError):
        kind = "ServiceUnavailableError" if error.status == 503 else "RateLimitError"
        headers = {"retry-after": str(error.retry_after)}
        return answer(path, str(error), kind, error.status, headers=headers)
    return answer(path, str(error), "InternalServerError", 500, headers=_NO_RETRY)


async def _framework(request: Request, error: Exception) -> JSONResponse:
    """Such as a body that is no JSON, or a path that is not there."""
    assert isinstance(error, HTTPException)
    kind = HTTPStatus(error.status_code).phrase
    headers = dict(error.headers) if error.headers else None
    path = request.url.path
    return answer(path, str(error.detail), kind, error.status_code, headers=headers)


def answer(
    path: str,
    message: str,
    kind: str,
    status: int,
    *,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error as clients of the path's API read it."""
    info = ErrorInfo(message=message, type=kind, param=param, code=status)
    return JSONResponse(_shaped(path, ErrorResponse(error=info)), status, headers)


def of_vllm(path: str, error: ErrorResponse, begun: bool) -> JSONResponse:
    """An error of vLLM's; ``begun`` is whether candidates have been drawn, which are lost then."""
    status = error.error.code
    headers = None
    if status >= 500:
        headers = _NO_RETRY if begun else {"retry-after": "1"}
    return JSONResponse(_shaped(path, error), status, headers)


def _shaped(path: str, error: ErrorResponse) -> dict[str, Any]:
    """OpenAI's shape, which is Anthropic's with one word more."""
    body: dict[str, Any] = error.model_dump()
    return {"type": "error", **body} if path == _ANTHROPIC else body
