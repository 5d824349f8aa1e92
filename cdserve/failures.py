"""Failures: the client gets a class and an id, the log the text and the traceback."""

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from cdserve.errors import CdserveError, InternalError, RewardFailure

Details = Literal["log", "client"]
"""Who is told an exception's text: the log alone, or the client too."""

_LOGGER = logging.getLogger("vllm.cdserve")


def told(
    subject: str,
    error: Exception,
    details: Details,
    request_id: str = "",
    level: int = logging.ERROR,
) -> str:
    """Logs a failure under a fresh id; returns the message for the client, with the same id.

    The text of an exception may hold part of a response, or an address, a key or a path of the
    operator's. Its class is code, not data, so the client is told that.

    Args:
        subject: what failed, such as ``reward 'helpful'``.
        details: whether the client is told the text too.
        request_id: vLLM's, which holds the client's ``X-Request-Id``; empty if not known.
    """
    error_id = secrets.token_hex(8)
    what, text, traced = f"{subject} failed with {type(error).__name__}", _line(error), True
    if isinstance(error, RewardFailure):
        what, text, traced = f"{subject} {error}", _line(error.details), False
    whole = f"{what}: {text}" if text else what
    where = f"error id {error_id}" + (f", request {request_id}" if request_id else "")
    _LOGGER.log(level, "%s: %s", where, whole, exc_info=error if traced else None)
    if details == "client":
        return f"{whole} (error id {error_id})"
    more = "; the server's log has the details" if text or traced else ""
    return f"{what} (error id {error_id}{more})"


@contextmanager
def hidden(
    subject: str, details: Details, request_id: str = "", allowed: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turns every exception that nobody expected into one without its text.

    Args:
        allowed: exceptions that pass as they are, beside cdserve's own.

    Raises:
        InternalError: in the place of all others; the message is that of ``told``.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (CdserveError, *allowed)):
            raise
        raise InternalError(told(subject, error, details, request_id)) from error


def _line(value: object) -> str:
    """Its text in one line of the log; an exception of the operator's may not even have one."""
    try:
        return " ".join(str(value).split())
    except Exception:
        return f"no text of {type(value).__name__} can be had"
