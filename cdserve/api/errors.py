"""cdserve's errors as answers of OpenAI's shape; ``AnthropicErrors`` makes Anthropic's of them."""

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse

from cdserve.errors import CdserveError, ModelError, OverloadError, PolicyError
from cdserve.observability.metrics import REFUSED

_NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients try a 5xx again by themselves unless they are told not to."""


def install(app: FastAPI) -> None:
    """Has the app answer what cdserve raises, and what Starlette does, in this shape."""
    app.add_exception_handler(CdserveError, _answer)
    app.add_exception_handler(HTTPException, _framework)


async def _answer(_: Request, error: Exception) -> JSONResponse:
    """Client errors name the field; an OverloadError says when to try again.

    All others are a 500, not to be tried again: the candidates it took are lost.
    """
    if isinstance(error, PolicyError):
        REFUSED.inc()
        return answer(str(error), "BadRequestError", 400, param=error.param)
    if isinstance(error, ModelError):
        return answer(str(error), "NotFoundError", 404, param="model")
    if isinstance(error, OverloadError):
        kind = "ServiceUnavailableError" if error.status == 503 else "RateLimitError"
        headers = {"retry-after": str(error.retry_after)}
        return answer(str(error), kind, error.status, headers=headers)
    return answer(str(error), "InternalServerError", 500, headers=_NO_RETRY)


async def _framework(_: Request, error: Exception) -> JSONResponse:
    """Such as a body that is no JSON, or a path that is not there."""
    assert isinstance(error, HTTPException)
    kind = HTTPStatus(error.status_code).phrase
    headers = dict(error.headers) if error.headers else None
    return answer(str(error.detail), kind, error.status_code, headers=headers)


def answer(
    message: str,
    kind: str,
    status: int,
    *,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error in OpenAI's shape."""
    info = ErrorInfo(message=message, type=kind, param=param, code=status)
    return JSONResponse(ErrorResponse(error=info).model_dump(), status, headers)


def of_vllm(error: ErrorResponse, begun: bool) -> JSONResponse:
    """An error of vLLM's; ``begun`` is whether candidates have been drawn, which are lost then."""
    status = error.error.code
    headers = None
    if status >= 500:
        headers = _NO_RETRY if begun else {"retry-after": "1"}
    return JSONResponse(error.model_dump(), status, headers)
