"""What can go wrong, and whose fault it is.

CdserveError
├── ConfigError      the operator's settings: raised at start, before anything is loaded
├── PolicyError      the client's request: 400, names the field
├── EngineError      an engine died: the process ends, for what runs it to start it anew, unless it
│                    was a reward model's that no request depends on
├── ModelError       the client's model: 404
├── OverloadError    no room for the request now: 503 or 429, and when to try again
├── ScoringError     a reward could not be computed: 500
├── RewardFailure    why it could not, as the reward knows it
└── InternalError    something failed that should not have: 500
"""


class CdserveError(Exception):
    """Base of all errors cdserve raises on purpose."""


class ConfigError(CdserveError):
    """A setting is wrong. The message names the key, the value and what is accepted."""


class EngineError(CdserveError):
    """An engine has died.

    The server ends with it, unless it was the engine of a reward model whose rewards all have
    ``on_failure`` ``skip`` or ``base``: those then fail at once, and the server goes on.
    """


class PolicyError(CdserveError):
    """A request asks for what cannot be done.

    Args:
        message: names the value and the accepted range.
        param: the request's field, such as ``alignment.k``.
    """

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class ModelError(CdserveError):
    """There is no such preset. The message names those that there are."""


class OverloadError(CdserveError):
    """There is no room for a request now; nothing has been done for it.

    Args:
        message: what is held, and the limit.
        status: 503 where the server is full, 429 where the client's key has all it may have.
        retry_after: seconds after which to try again.
    """

    def __init__(self, message: str, status: int, retry_after: int) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class ScoringError(CdserveError):
    """A reward failed or returned a value that is not a finite number."""


class RewardFailure(CdserveError):
    """A reward has no score, for a reason that it knows.

    Args:
        reason: what follows the reward's name in the message to the client. It holds no text of
            the prompt or the response, no address and no path.
        details: what only the server's log is told.
    """

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(reason)
        self.details = details


class InternalError(CdserveError):
    """An exception that nobody expected, such as a decoder's. The message has none of its text."""


def shown_key(key: str, limit: int = 80) -> str:
    """A key that a client chose, as it may stand in a message: capped, and valid as UTF-8."""
    text = key.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else f"{text[:limit]}…"


def safe_repr(value: object, limit: int = 80) -> str:
    """``value`` as it may stand in an error message: its repr, capped at ``limit`` characters."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
