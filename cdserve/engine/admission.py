"""Admission: a request comes in only where its candidates can run or wait within the limits."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from cdserve.errors import OverloadError
from cdserve.metrics import REJECTED

_LONGEST = 60
"""Seconds after which a client is told to try again, at most."""
_FORGETTING = 0.1
"""Weight of the newest request in the mean time that requests take."""


class Admission:
    """Counts the candidates of the requests inside: what they may hold at once, at most.

    Args:
        capacity: candidates that may run or wait at once.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._inside = 0
        self._of_key = Counter[str]()
        self._seconds = 0.0

    @contextmanager
    def admit(self, candidates: int, key: str = "", key_limit: int | None = None) -> Iterator[None]:
        """Holds room for a request's candidates until it ends.

        Args:
            candidates: that it holds at once, at most.
            key: whose request it is.
            key_limit: candidates that the key's requests may hold at once; None for no such limit.

        Raises:
            OverloadError: there is no room for them now.
        """
        if key_limit is not None and self._of_key[key] + candidates > key_limit:
            self._reject("key", candidates, self._of_key[key], key_limit)
        if self._inside + candidates > self.capacity:
            self._reject("server", candidates, self._inside, self.capacity)
        self._inside += candidates
        self._of_key[key] += candidates
        began = time.monotonic()
        try:
            yield
        finally:
            self._inside -= candidates
            self._of_key[key] -= candidates
            self._seconds += _FORGETTING * (time.monotonic() - began - self._seconds)

    def _reject(self, whose: str, candidates: int, inside: int, limit: int) -> None:
        REJECTED.labels(whose).inc()
        raise OverloadError(
            f"this {whose}'s requests hold {inside} candidates; {candidates} more would pass the "
            f"limit of {limit}. Try again later",
            status=429 if whose == "key" else 503,
            retry_after=min(_LONGEST, max(1, math.ceil(self._seconds))),
        )
