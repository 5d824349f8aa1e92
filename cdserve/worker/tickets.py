"""Tickets as arrays: one a request slot, so that a step finds those of its rows at once."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cdserve.shared_table import Ticket

Ints = npt.NDArray[np.int64]
_RESTING = 1 << 16
"""Paths kept after their last ticket is gone, since results of a step may still be written."""


class Places(NamedTuple):
    """Where results go, one entry each; int64 ``[n]``."""

    table: Ints
    """Of ``PATHS``; -1 where a result goes nowhere."""
    number: Ints
    offset: Ints
    length: Ints

    def of(self, rows: Ints | slice) -> "Places":
        """Some of them, or some of them several times."""
        return Places(self.table[rows], self.number[rows], self.offset[rows], self.length[rows])


class Paths:
    """Numbers that stand for the paths of value tables."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._paths: dict[int, str] = {}
        self._held: Counter[int] = Counter()
        self._resting: dict[int, None] = {}
        self._issued = 0

    def hold(self, path: str) -> int:
        """The path's number, which is known at least until it is released."""
        number = self._numbers.get(path)
        if number is None:
            number, self._issued = self._issued, self._issued + 1
            self._numbers[path], self._paths[number] = number, path
        self._resting.pop(number, None)
        self._held[number] += 1
        return number

    def release(self, number: int) -> None:
        """Takes back one ``hold``."""
        self._held[number] -= 1
        if self._held[number]:
            return
        del self._held[number]
        self._resting[number] = None
        if len(self._resting) > _RESTING:
            oldest = next(iter(self._resting))
            del self._resting[oldest], self._numbers[self._paths.pop(oldest)]

    def __len__(self) -> int:
        """How many paths are known."""
        return len(self._paths)

    def __getitem__(self, number: int) -> str:
        """The path of a number."""
        return self._paths[number]


PATHS = Paths()
"""Of the worker's process."""


class Tickets:
    """The ticket of each request slot; none at first."""

    def __init__(self, slots: int, paths: Paths = PATHS) -> None:
        self._rows = np.full((slots, len(Places._fields)), -1, np.int64)
        self._paths = paths

    def put(self, slot: int, ticket: Ticket | None) -> None:
        """A slot's ticket from now on."""
        table, before = -1, int(self._rows[slot, 0])
        if ticket is not None:
            table = self._paths.hold(ticket.path)
            self._rows[slot, 1:] = ticket.number, ticket.offset, ticket.length
        self._rows[slot, 0] = table
        if before >= 0:
            self._paths.release(before)

    def of(self, slots: Ints) -> Places:
        """The tickets of these slots."""
        return Places(*self._rows.take(slots, axis=0).T)
