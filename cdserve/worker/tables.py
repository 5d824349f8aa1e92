"""The worker's side of the value tables: the open ones, and writing into them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cdserve.shared_table import TableView, Ticket
from cdserve.worker.tickets import PATHS, Ints, Paths, Places

_MAX_OPEN = 16


class Tables:
    """Tables by path, opened when first written to.

    Args:
        columns: values a row, the same in all of them.
        paths: what the tables of places stand for.
    """

    def __init__(self, columns: int, paths: Paths = PATHS) -> None:
        self._columns = columns
        self._paths = paths
        self._open: dict[int, TableView] = {}

    def write(self, places: Places, lengths: Ints, values: npt.NDArray[np.float32]) -> None:
        """Writes values ``[n, G]`` of prefixes of ``lengths`` tokens ``[n]``, each to its place.

        Values for a table that has been removed are dropped.
        """
        rows = places.offset + lengths % places.length
        for table, some in _by_table(places.table):
            if (view := self._view(table)) is not None:
                view.write(rows[some], places.number[some], lengths[some], values[some])

    def _view(self, table: int) -> TableView | None:
        """A table; None if the server has removed it, and so reads it no more.

        It removes a text's table as soon as the client leaves, which can be within a step.
        """
        view = self._open.get(table)
        if view is None:
            try:
                view = TableView.open(self._paths[table], self._columns)
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
    """Each table that results go to, with the places that are its own."""
    first = int(tables[0]) if len(tables) else -1
    if (tables == first).all():  # nearly always
        if first >= 0:
            yield first, slice(None)
        return
    for table in np.unique(tables[tables >= 0]).tolist():
        yield table, np.flatnonzero(tables == table)
