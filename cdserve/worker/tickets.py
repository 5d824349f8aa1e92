"""Tickets as arrays, one entry per request slot."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cdserve.shared_table import Ticket

Ints = npt.NDArray[np.int64]
_MOST_RELEASED = 1 << 16
"""Ids kept after their last ticket is gone: results of a step may still be on their way."""


class Destinations(NamedTuple):
    """Rows of shared tables that results are written to; int64 ``[n]`` each."""

    table: Ints
    """Id of the table in ``TABLE_IDS``; -1 where nothing is written."""
    number: Ints
    offset: Ints
    length: Ints

    def of(self, rows: Ints | slice) -> "Destinations":
        """The destinations at these indices, which may repeat."""
        return Destinations(
            self.table[rows], self.number[rows], self.offset[rows], self.length[rows]
        )


class TableIds:
    """Integer ids of shared tables, by file path."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._paths: dict[int, str] = {}
        self._held: Counter[int] = Counter()
        self._released: dict[int, None] = {}
        self._issued = 0

    def hold(self, path: str) -> int:
        """The id of a table, valid until ``release`` is called as often as ``hold``."""
        table = self._ids.get(path)
        if table is None:
            table, self._issued = self._issued, self._issued + 1
            self._ids[path], self._paths[table] = table, path
        self._released.pop(table, None)
        self._held[table] += 1
        return table

    def release(self, table: int) -> None:
        """Undoes one ``hold``."""
        self._held[table] -= 1
        if self._held[table]:
            return
        del self._held[table]
        self._released[table] = None
        if len(self._released) > _MOST_RELEASED:
            oldest = next(iter(self._released))
            del self._released[oldest], self._ids[self._paths.pop(oldest)]

    def __len__(self) -> int:
        """Number of tables that have an id."""
        return len(self._paths)

    def __getitem__(self, table: int) -> str:
        """The path of the table with this id."""
        return self._paths[table]


TABLE_IDS = TableIds()
"""Ids of the tables that this process writes to."""


class Tickets:
    """The ticket of each request slot; none at first."""

    def __init__(self, slots: int, ids: TableIds = TABLE_IDS) -> None:
        self._rows = np.full((slots, len(Destinations._fields)), -1, np.int64)
        self._ids = ids

    def assign(self, slot: int, ticket: Ticket | None) -> None:
        """Sets the ticket of a slot."""
        table, previous = -1, int(self._rows[slot, 0])
        if ticket is not None:
            table = self._ids.hold(ticket.path)
            self._rows[slot, 1:] = ticket.number, ticket.offset, ticket.length
        self._rows[slot, 0] = table
        if previous >= 0:
            self._ids.release(previous)

    def of(self, slots: Ints) -> Destinations:
        """The tickets of these slots."""
        return Destinations(*self._rows.take(slots, axis=0).T)
