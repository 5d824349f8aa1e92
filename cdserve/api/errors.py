"""Error responses in OpenAI's format; ``api.messages`` converts them for Anthropic's API."""

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.exceptions import VLLMClientError

from cdserve.errors import CdserveError, ModelError, OverloadError, PolicyError
from cdserve.observability.metrics import REFUSED

_NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients retry a 5xx automatically unless this header forbids it."""

_STREAMS = (
    "vllm.entrypoints.openai.completion.serving",
    "vllm.entrypoints.openai.chat_completion.serving",
    "vllm.entrypoints.anthropic.serving",
)
"""Loggers to which vLLM writes the traceback of every exception that ends a stream."""


def install(app: FastAPI) -> None:
    """Registers the handlers for cdserve's and Starlette's exceptions.

    vLLM logs each exception that ends a stream. A filter drops client errors, and errors that
    cdserve has logged already.
    """
    for name in _STREAMS:
        logging.getLogger(name).addFilter(_is_unexpected)
    app.add_exception_handler(CdserveError, _on_cdserve_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


def _is_unexpected(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (CdserveError, VLLMClientError))


async def _on_cdserve_error(_: Request, error: Exception) -> JSONResponse:
    """Maps client errors to 4xx and an OverloadError to 429 or 503 with a retry delay.

    All others are a 500 without a retry, which would draw all candidates again.
    """
    if isinstance(error, PolicyError):
        REFUSED.labels(error.reason).inc()
        return error_response(str(error), "BadRequestError", 400, param=error.param)
    if isinstance(error, ModelError):
        return error_response(str(error), "NotFoundError", 404, param="model")
    if isinstance(error, OverloadError):
        kind = "ServiceUnavailableError" if error.status == 503 else "RateLimitError"
        headers = {"retry-after": str(error.retry_after)}
        return error_response(str(error), kind, error.status, headers=headers)
    return error_response(str(error), "InternalServerError", 500, headers=_NO_RETRY)


async def _on_http_exception(_: Request, error: Exception) -> JSONResponse:
    """Handles the framework's errors, such as a malformed body or an unknown path."""
    assert isinstance(error, HTTPException)
    kind = HTTPStatus(error.status_code).phrase
    headers = dict(error.headers) if error.headers else None
    return error_response(str(error.detail), kind, error.status_code, headers=headers)


def error_response(
    message: str,
    kind: str,
    status: int,
    *,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error response in OpenAI's format."""
    info = ErrorInfo(message=message, type=kind, param=param, code=status)
    return JSONResponse(ErrorResponse(error=info).model_dump(), status, headers)


def from_vllm_error(error: ErrorResponse, begun: bool) -> JSONResponse:
    """The response for an error of vLLM's serving code.

    Args:
        begun: whether candidates have been drawn; a 5xx then forbids a retry.
    """
    status = error.error.code
    headers = None
    if status >= 500:
        headers = _NO_RETRY if begun else {"retry-after": "1"}
    return JSONResponse(error.model_dump(), status, headers)
