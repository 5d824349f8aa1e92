"""Reporting of failures: class and id to the client, text and traceback to the log."""

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from cdserve.errors import CdserveError, InternalError, RewardFailure

Details = Literal["log", "client"]
"""Where the text of an exception goes: to the log only, or to the client as well."""

_LOGGER = logging.getLogger("vllm.cdserve")


def log_failure(
    subject: str,
    error: Exception,
    details: Details,
    request_id: str = "",
    level: int = logging.ERROR,
) -> str:
    """Logs a failure under a new id and returns the client's message with the same id.

    The message contains the exception's class, which is code. It omits the text, which may contain
    part of a response, or an address, a key or a path of the operator's, unless ``details`` is
    ``client``.

    Args:
        subject: noun phrase for the failed part, such as ``reward 'helpful'``.
        error: the exception.
        details: where the exception's text goes.
        request_id: vLLM's request id, which contains the client's ``X-Request-Id``; empty if
            unknown.
        level: log level.
    """
    error_id = secrets.token_hex(8)
    traceback: Exception | None = error
    if isinstance(error, RewardFailure):
        summary, text, traceback = f"{subject} {error}", _one_line(error.details), None
    else:
        summary, text = f"{subject} failed with {type(error).__name__}", _one_line(error)
    full = f"{summary}: {text}" if text else summary
    ids = f"error id {error_id}" + (f", request {request_id}" if request_id else "")
    _LOGGER.log(level, "%s: %s", ids, full, exc_info=traceback)
    if details == "client":
        return f"{full} (error id {error_id})"
    pointer = "; the server's log has the details" if text or traceback is not None else ""
    return f"{summary} (error id {error_id}{pointer})"


@contextmanager
def hide_unexpected(
    subject: str, details: Details, request_id: str = "", allowed: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Replaces unexpected exceptions by an InternalError without their text.

    Args:
        allowed: exception classes to pass through, in addition to cdserve's own.

    Raises:
        InternalError: replaces all other exceptions, with the message of ``log_failure``.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (CdserveError, *allowed)):
            raise
        raise InternalError(log_failure(subject, error, details, request_id)) from error


def _one_line(value: object) -> str:
    """Text of ``value`` on one line, for the log."""
    try:
        return " ".join(str(value).split())
    except Exception:  # an operator's exception class may fail in __str__
        return f"the text of {type(value).__name__} is not available"
