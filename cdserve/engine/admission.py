"""Admission: a request is accepted only if its candidates fit the limits."""

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
"""Upper bound on ``retry-after``, in seconds."""
_FORGETTING = 0.1
"""Weight of the newest request in the moving average of request durations."""

CandidateCounters: TypeAlias = "SynchronizedArray[int]"
"""Candidates held by all requests, then by the requests of each key; shared by API servers."""


def new_counters(keys: int, *, spawned: bool = False) -> CandidateCounters:
    """Counters at zero.

    Args:
        keys: number of API keys.
        spawned: whether spawned processes share them. Their lock then has a name, which
            outlives a process that is killed.
    """
    return multiprocessing.get_context("spawn" if spawned else "fork").Array("q", 1 + keys)


class Admission:
    """Bounds the candidates of the requests under way.

    Args:
        capacity: candidates that may run or wait at once.
        keys: names of the API keys.
        counters: the counters.
    """

    def __init__(self, capacity: int, keys: Sequence[str], counters: CandidateCounters) -> None:
        self.capacity = capacity
        self._places = {key: place for place, key in enumerate(keys, 1)}
        self._counters = counters
        self._seconds = 0.0

    @contextmanager
    def admit(self, candidates: int, key: str = "", key_limit: int | None = None) -> Iterator[None]:
        """Reserves capacity for a request's candidates until the context ends.

        Args:
            candidates: candidates that it may have at once, times its answers.
            key: name of the API key of the request.
            key_limit: candidates that requests of the key may hold at once; None for no limit.

        Raises:
            OverloadError: the candidates do not fit now.
        """
        place = self._places.get(key, 0)
        with self._counters.get_lock():
            if key_limit is not None and self._counters[place] + candidates > key_limit:
                self._reject("key", candidates, self._counters[place], key_limit)
            if self._counters[0] + candidates > self.capacity:
                self._reject("server", candidates, self._counters[0], self.capacity)
            self._add(place, candidates)
        began = time.monotonic()
        try:
            yield
        finally:
            with self._counters.get_lock():
                self._add(place, -candidates)
            self._seconds += _FORGETTING * (time.monotonic() - began - self._seconds)

    def _add(self, place: int, candidates: int) -> None:
        for counter in {0, place}:
            self._counters[counter] += candidates

    def _reject(self, whose: str, candidates: int, inside: int, limit: int) -> None:
        REJECTED.labels(whose).inc()
        raise OverloadError(
            f"this {whose}'s requests hold {inside} candidates; {candidates} more would pass the "
            f"limit of {limit}. Try again later",
            status=429 if whose == "key" else 503,
            retry_after=min(_LONGEST, max(1, math.ceil(self._seconds))),
        )
