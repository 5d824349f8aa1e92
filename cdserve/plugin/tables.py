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

    def view(self, path: str) -> TableView:
        """The table at ``path``."""
        table = self._open.get(path)
        if table is None:
            if len(self._open) >= _MAX_OPEN:
                del self._open[next(iter(self._open))]
            table = self._open[path] = TableView.open(path, self._columns)
        return table

    def write(
        self,
        tickets: Sequence[Ticket],
        lengths: Sequence[int] | npt.NDArray[np.int64],
        values: npt.NDArray[np.float32],
    ) -> None:
        """Writes values ``[N, G]`` of prefixes of ``lengths`` tokens, each to its ticket's rows."""
        by_path: dict[str, list[int]] = {}
        for i, ticket in enumerate(tickets):
            by_path.setdefault(ticket.path, []).append(i)
        lengths = np.asarray(lengths)
        numbers = np.array([ticket.number for ticket in tickets])
        rows = np.array([ticket.offset for ticket in tickets])
        rows = rows + lengths % np.array([ticket.length for ticket in tickets])
        for path, group in by_path.items():
            self.view(path).write(rows[group], numbers[group], lengths[group], values[group])
