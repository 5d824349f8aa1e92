"""Errors, by cause and HTTP status.

CdserveError
├── ConfigError      invalid setting of the operator: raised at startup, before anything is loaded
├── PolicyError      invalid request: 400, names the field
├── EngineError      dead engine: ends the process, so that its supervisor restarts it
├── ModelError       unknown model: 404
├── OverloadError    no capacity for the request now: 503 or 429, with a delay for the retry
├── ScoringError     reward that could not be computed: 500
├── RewardFailure    reason that a reward gives for its failure
├── JudgeFailure     pairwise judge that failed, where the decision does without it
└── InternalError    unexpected exception: 500
"""

import re
from typing import Literal

RefusalReason = Literal["invalid", "limit", "combination"]
"""Reason for a 400.

``invalid``: a field, value or name that is unknown or malformed. ``limit``: more than this server
accepts. ``combination``: values that are valid, but not together.
"""

_USER_IN_URL = re.compile(r"://[^/@\s'\"]*@")


class CdserveError(Exception):
    """Base of all errors that cdserve raises on purpose."""


class ConfigError(CdserveError):
    """A setting is invalid. The message names the key, the value and what is accepted."""


class EngineError(CdserveError):
    """An engine has died.

    The server ends too, unless the engine served a reward model whose rewards all have
    ``on_failure`` ``skip`` or ``base``: these rewards then fail immediately.
    """


class PolicyError(CdserveError):
    """A field of a request is invalid.

    The message is the path of the field followed by ``detail``.

    Args:
        param: path of the field, such as ``alignment.k``.
        detail: predicate of the sentence, with the value and what is accepted.
        reason: why the request is refused, for the metrics.
    """

    def __init__(self, param: str, detail: str, reason: RefusalReason = "invalid") -> None:
        super().__init__(f"{param} {detail}")
        self.param = param
        self.detail = detail
        self.reason = reason

    def under(self, prefix: str) -> "PolicyError":
        """The same error with ``prefix`` in place of ``alignment`` at the start of the path.

        An empty prefix removes it.
        """
        path = self.param.removeprefix("alignment.")
        return PolicyError(f"{prefix}.{path}" if prefix else path, self.detail, self.reason)


class ModelError(CdserveError):
    """The requested model or preset does not exist. The message lists the alternatives."""


class OverloadError(CdserveError):
    """The server or the client's API key is at its limit; no work was done for the request.

    Args:
        message: names the current load and the limit.
        status: 503 if the server is full, 429 if the API key is at its limit.
        retry_after: delay before a retry, in seconds.
    """

    def __init__(self, message: str, status: int, retry_after: int) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class ScoringError(CdserveError):
    """A reward failed or returned a value that is not a finite number."""


class RewardFailure(CdserveError):
    """A reward fails for a known reason.

    Args:
        reason: end of the message to the client, after the reward's name. Contains no text of the
            prompt or the response, no address and no path.
        details: further text for the server's log only.
    """

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(reason)
        self.details = details


class JudgeFailure(CdserveError):
    """A pairwise judge failed, and its settings allow a decision without it.

    Args:
        judge: name of the judge.
        on_failure: ``skip``: the scores decide. ``base``: the first candidate is selected.
    """

    def __init__(self, judge: str, on_failure: Literal["skip", "base"]) -> None:
        super().__init__(f"pairwise judge {judge!r} failed")
        self.judge = judge
        self.on_failure = on_failure


class InternalError(CdserveError):
    """Replaces an unexpected exception, such as a decoder's; the message omits its text."""


def safe_key(key: str, limit: int = 80) -> str:
    """A client's key for use in an error message: valid UTF-8, cut after ``limit`` characters."""
    text = key.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else f"{text[:limit]}…"


def safe_repr(value: object, limit: int = 80) -> str:
    """The repr of ``value`` for use in an error message, cut after ``limit`` characters.

    Passwords in URLs are left out.
    """
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    text = _USER_IN_URL.sub("://***@", text)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
