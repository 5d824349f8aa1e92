"""Requests to other servers over HTTP, and their failures in words that a client may read."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cdserve.errors import RewardFailure

_EXCERPT = 200
"""Characters of an answer that go to the log."""


class StatusFailure(RewardFailure):
    """The server answered with an error status."""

    def __init__(self, reason: str, details: str, status: int) -> None:
        super().__init__(reason, details)
        self.status = status


class Endpoint:
    """Another server, reached over HTTP with persistent connections.

    Attempts that fail through no fault of the request (no connection, a timeout, status 408, 409,
    429 or 5xx) are repeated, after 0.5 to 8 seconds or the answer's ``retry-after``.

    Args:
        subject: noun phrase for the server, such as ``the judge``, in failures.
        url: URL that paths are appended to.
        api_key: bearer token; None for none.
        timeout: seconds for one attempt.
        retries: maximum number of repeated attempts.
    """

    def __init__(
        self, subject: str, url: str, api_key: str | None, *, timeout: float, retries: int
    ) -> None:
        # Imported here: it takes half a second, and few servers need it.
        from openai import AsyncOpenAI

        self._subject = subject
        self._url = url
        self._api_key = api_key
        self.client = AsyncOpenAI(
            base_url=url, api_key=api_key or "none", timeout=timeout, max_retries=retries
        )
        """The client; calls belong inside ``failures``."""

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """JSON of the answer to a POST of JSON.

        Raises:
            RewardFailure: the server does not answer, or not in JSON.
            StatusFailure: the server answers with an error status.
        """
        with self.failures(path):
            answer = await self.client.post(path, body=body, cast_to=str)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise self.failure("did not answer in JSON", path, answer) from error

    @contextmanager
    def failures(self, path: str = "") -> Iterator[None]:
        """Replaces exceptions of the client by RewardFailures."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        try:
            yield
        except APITimeoutError as error:
            raise self.failure("did not answer in time", path) from error
        except APIConnectionError as error:
            raise self.failure("cannot be reached", path) from error
        except APIStatusError as error:
            status = error.status_code
            failure = self.failure(f"answered with status {status}", path, error.response.text)
            raise StatusFailure(str(failure), failure.details, status) from error

    def failure(self, predicate: str, path: str = "", answer: str = "") -> RewardFailure:
        """A failure whose details, for the log, are the address and the start of the answer."""
        excerpt = answer[:_EXCERPT]
        details = f"{self._url}{path}: {excerpt}" if excerpt else f"{self._url}{path}"
        if self._api_key:  # a server may repeat it
            details = details.replace(self._api_key, "***")
        return RewardFailure(f"failed: {self._subject} {predicate}", details)
