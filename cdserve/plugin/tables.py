"""The worker's side of the value tables: the open ones, and writing into them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cdserve.value_table import TableView, Ticket

_MAX_OPEN = 16


class Tables:
    """Tables by path, opened when first written to.

    Args:
        columns: values a row, the same in all of them.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._open: dict[str, TableView] = {}

    def write(
        self,
        tickets: Sequence[Ticket],
        lengths: Sequence[int] | npt.NDArray[np.int64],
        values: npt.NDArray[np.float32],
    ) -> None:
        """Writes values ``[N, G]`` of prefixes of ``lengths`` tokens, each to its ticket's rows.

        Values for a table that has been removed are dropped.
        """
        by_path: dict[str, list[int]] = {}
        for i, ticket in enumerate(tickets):
            by_path.setdefault(ticket.path, []).append(i)
        lengths = np.asarray(lengths)
        numbers = np.array([ticket.number for ticket in tickets])
        rows = np.array([ticket.offset for ticket in tickets])
        rows = rows + lengths % np.array([ticket.length for ticket in tickets])
        for path, group in by_path.items():
            if (view := self._view(path)) is not None:
                view.write(rows[group], numbers[group], lengths[group], values[group])

    def read(self, ticket: Ticket, length: int) -> npt.NDArray[np.float32] | None:
        """The values of the prefix of ``length`` tokens, ``[G]``; None if they are not there."""
        view = self._view(ticket.path)
        return None if view is None else view.read(ticket, length)

    def _view(self, path: str) -> TableView | None:
        """The table at ``path``; None if the server has removed it, and so reads it no more.

        It removes a text's table as soon as the client leaves, which can be within a step.
        """
        table = self._open.get(path)
        if table is None:
            try:
                table = TableView.open(path, self._columns)
            except FileNotFoundError:
                return None
            if len(self._open) >= _MAX_OPEN:
                del self._open[next(iter(self._open))]
            self._open[path] = table
        return table
