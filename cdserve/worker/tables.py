"""Writes results into the shared tables that tickets name."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cdserve.shared_table import TableView, Ticket
from cdserve.worker.tickets import TABLE_IDS, Destinations, Ints, TableIds

_MAX_OPEN = 16


class Tables:
    """Shared tables of one width, opened when first written to.

    Args:
        columns: values per row.
        ids: table ids that destinations refer to.
    """

    def __init__(self, columns: int, ids: TableIds = TABLE_IDS) -> None:
        self._columns = columns
        self._ids = ids
        self._open: dict[int, TableView] = {}

    def write(
        self, destinations: Destinations, lengths: Ints, values: npt.NDArray[np.float32]
    ) -> None:
        """Writes values ``[n, G]`` of prefixes of ``lengths`` tokens ``[n]``.

        Values for a table that has been removed are dropped.
        """
        rows = destinations.offset + lengths % destinations.length
        for table, some in _by_table(destinations.table):
            if (view := self._view(table)) is not None:
                view.write(rows[some], destinations.number[some], lengths[some], values[some])

    def _view(self, table: int) -> TableView | None:
        """The table with this id; None if the server has removed it.

        The server removes a text's table as soon as its client disconnects, even within a step.
        """
        view = self._open.get(table)
        if view is None:
            try:
                view = TableView.open(self._ids[table], self._columns)
            except FileNotFoundError:
                return None
            if len(self._open) >= _MAX_OPEN:
                del self._open[next(iter(self._open))]
            self._open[table] = view
        return view


def read(ticket: Ticket, columns: int, length: int) -> npt.NDArray[np.float32] | None:
    """The values of the prefix of ``length`` tokens, ``[G]``; None if they are not there."""
    try:
        return TableView.open(ticket.path, columns).read(ticket, length)
    except FileNotFoundError:
        return None


def _by_table(tables: Ints) -> Iterator[tuple[int, Any]]:
    """Each table id, with the indices of its destinations."""
    first = int(tables[0]) if len(tables) else -1
    if (tables == first).all():  # nearly always
        if first >= 0:
            yield first, slice(None)
        return
    for table in np.unique(tables[tables >= 0]).tolist():
        yield table, np.flatnonzero(tables == table)
