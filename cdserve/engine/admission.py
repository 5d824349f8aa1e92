"""Admission: a request comes in only where its candidates can run or wait within the limits."""

import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.sharedctypes import SynchronizedArray
from typing import TypeAlias

from cdserve.errors import OverloadError
from cdserve.observability.metrics import REJECTED

_LONGEST = 60
"""Seconds after which a client is told to try again, at most."""
_FORGETTING = 0.1
"""Weight of the newest request in the mean time that requests take."""

Held: TypeAlias = "SynchronizedArray[int]"
"""Candidates held: of all requests, then of each key's. API server processes share it."""


def none_held(keys: int, *, spawned: bool = False) -> Held:
    """Counters for a server with so many keys.

    Args:
        spawned: whether processes that are spawned get them too. Their lock has a name then, which
            outlives a process that is killed.
    """
    return multiprocessing.get_context("spawn" if spawned else "fork").Array("q", 1 + keys)


class Admission:
    """Counts the candidates of the requests inside: what they may hold at once, at most.

    Args:
        capacity: candidates that may run or wait at once.
        keys: names of keys that have a limit of their own.
        held: the counters.
    """

    def __init__(self, capacity: int, keys: Sequence[str], held: Held) -> None:
        self.capacity = capacity
        self._places = {key: place for place, key in enumerate(keys, 1)}
        self._held = held
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
        place = self._places.get(key, 0)
        with self._held.get_lock():
            if key_limit is not None and self._held[place] + candidates > key_limit:
                self._reject("key", candidates, self._held[place], key_limit)
            if self._held[0] + candidates > self.capacity:
                self._reject("server", candidates, self._held[0], self.capacity)
            self._add(place, candidates)
        began = time.monotonic()
        try:
            yield
        finally:
            with self._held.get_lock():
                self._add(place, -candidates)
            self._seconds += _FORGETTING * (time.monotonic() - began - self._seconds)

    def _add(self, place: int, candidates: int) -> None:
        for counter in {0, place}:
            self._held[counter] += candidates

    def _reject(self, whose: str, candidates: int, inside: int, limit: int) -> None:
        REJECTED.labels(whose).inc()
        raise OverloadError(
            f"this {whose}'s requests hold {inside} candidates; {candidates} more would pass the "
            f"limit of {limit}. Try again later",
            status=429 if whose == "key" else 503,
            retry_after=min(_LONGEST, max(1, math.ceil(self._seconds))),
        )
