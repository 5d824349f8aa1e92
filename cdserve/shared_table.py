"""Table in shared memory that carries numbers (values, KL, statistics of tokens) to the server.

The server adds a ticket, a range of rows, to each engine request whose numbers it needs. In vLLM's
step the worker writes the numbers of a prefix into the ticket's rows. The server reads them when
the request's output arrives, which the worker sends after writing. This costs no message, no
waiting and no work per token in the server (docs/log.md has measurements of the alternatives).
Worker and server must run on the same machine.

A row records the ticket and the prefix length it was written for. A row that was never written, or
was overwritten, therefore reads as missing, and never as the numbers of another prefix.

Layout: int64 ``[rows, 2]`` (ticket, prefix length), then float32 ``[rows, G]``.
"""

import fcntl
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]

_EMPTY = -1
_PREFIX = "cdserve-values-"
_POOL_ROWS = 1 << 16
"""Rows of a pool's first table of a length."""
_LEAST_LENGTH = 15


@dataclass(frozen=True, slots=True)
class Ticket:
    """Rows ``offset`` to ``offset + length`` of the table at ``path``, for one engine request."""

    path: str
    number: int
    offset: int
    length: int

    def to_wire(self) -> list[str | int]:
        """The ticket in the form of ``SamplingParams.extra_args``."""
        return [self.path, self.number, self.offset, self.length]

    @classmethod
    def from_wire(cls, wire: list[str | int]) -> "Ticket":
        """The ticket that ``to_wire`` wrote."""
        path, number, offset, length = wire
        return cls(str(path), int(number), int(offset), int(length))


class TableView:
    """The mapped table; server and worker each open one.

    Attributes:
        keys: int64 ``[rows, 2]``, ticket number and prefix length.
        values: float32 ``[rows, G]``.
    """

    def __init__(self, path: str, rows: int, columns: int) -> None:
        self.keys: npt.NDArray[np.int64] = np.memmap(
            path, dtype=np.int64, mode="r+", shape=(rows, 2)
        )
        self.values: npt.NDArray[np.float32] = np.memmap(
            path, dtype=np.float32, mode="r+", offset=rows * 16, shape=(rows, columns)
        )

    @classmethod
    def open(cls, path: str, columns: int) -> "TableView":
        """Maps an existing table with ``columns`` values per row.

        Raises:
            ValueError: the size of the file is not a multiple of the size of such a row.
        """
        rows, rest = divmod(os.stat(path).st_size, 16 + 4 * columns)
        if rest:
            raise ValueError(f"shared table {path} does not hold rows of {columns} values")
        return cls(path, rows, columns)

    def write(
        self,
        rows: npt.NDArray[np.int64],
        tickets: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        values: npt.NDArray[np.float32],
    ) -> None:
        """Writes values into rows.

        Args:
            rows: row indices ``[N]``.
            tickets: ticket numbers ``[N]``.
            lengths: prefix lengths in tokens ``[N]``.
            values: ``[N, G]``.
        """
        self.keys[rows, 0] = _EMPTY
        self.values[rows] = values
        self.keys[rows, 1] = lengths
        self.keys[rows, 0] = tickets

    def read(self, ticket: Ticket, length: int) -> npt.NDArray[np.float32] | None:
        """Values ``[G]`` of the prefix of ``length`` tokens; None if they are missing."""
        row = ticket.offset + length % ticket.length
        values = np.array(self.values[row])
        written = self.keys[row, 0] == ticket.number and self.keys[row, 1] == length
        return values if written else None

    def read_span(self, ticket: Ticket, first: int, last: int) -> tuple[Floats, Masks]:
        """Values ``[n, G]`` of the prefixes of ``first`` to ``last`` tokens, and which are there.

        Args:
            ticket: of at least n = ``last`` - ``first`` + 1 rows.
            first: tokens of the shortest prefix.
            last: tokens of the longest.
        """
        lengths = np.arange(first, last + 1)
        rows = ticket.offset + lengths % ticket.length
        values = self.values[rows]
        return values, (
            self.keys[rows] == np.stack([np.full_like(lengths, ticket.number), lengths], 1)
        ).all(1)


class SharedTable:
    """The server's side: creates the table, issues tickets and reads values.

    The process holds a lock on the table's file. Files without a lock belong to servers that were
    killed, and are removed first.

    Args:
        slots: maximum number of tickets in use.
        length: rows per ticket; the prefix of n tokens is written to row n modulo ``length``.
        columns: values per row.
    """

    def __init__(self, *, slots: int, columns: int, length: int = 1) -> None:
        folder = Path("/dev/shm") if os.path.isdir("/dev/shm") else Path(tempfile.gettempdir())
        _remove_abandoned(folder)
        self._lock: int | None
        self._lock, temporary = tempfile.mkstemp(dir=folder)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # The file gets the prefix only now: other servers remove such files if they are not locked.
        self.path = str(folder / f"{_PREFIX}{Path(temporary).name}")
        os.rename(temporary, self.path)
        os.truncate(self._lock, slots * length * (16 + 4 * columns))
        self._view = TableView(self.path, slots * length, columns)
        self._view.keys[:] = _EMPTY
        self._slots = slots
        self._length = length
        # First in, first out: a slot stays unused as long as possible before it is reused.
        self._free = deque(range(slots))
        self._issued = 0

    def acquire(self) -> Ticket:
        """Issues a ticket for one engine request.

        Raises:
            RuntimeError: all slots are in use.
        """
        if not self._free:
            raise RuntimeError(f"the shared table is full: all {self._slots} slots are in use")
        self._issued += 1
        return Ticket(self.path, self._issued, self._free.popleft() * self._length, self._length)

    @contextmanager
    def ticket(self) -> Iterator[Ticket]:
        """Issues a ticket and releases it at the end of the context.

        Raises:
            RuntimeError: all slots are in use.
        """
        ticket = self.acquire()
        try:
            yield ticket
        finally:
            self.release(ticket)

    def release(self, ticket: Ticket) -> None:
        """Makes the ticket's rows available again."""
        self._free.append(ticket.offset // self._length)

    def read(self, ticket: Ticket, length: int) -> npt.NDArray[np.float32] | None:
        """Values ``[G]`` of the prefix of ``length`` tokens; None if they are missing."""
        return self._view.read(ticket, length)

    def read_from(self, ticket: Ticket, length: int) -> npt.NDArray[np.float32] | None:
        """Values ``[G]`` of the shortest prefix of at least ``length`` tokens that has them.

        The worker may be ahead of the outputs that have arrived by any number of tokens, and
        overwrites the rows of shorter prefixes.
        """
        keys = self._view.keys[ticket.offset : ticket.offset + ticket.length]
        written = keys[(keys[:, 0] == ticket.number) & (keys[:, 1] >= length), 1]
        rows = (self.read(ticket, later) for later in sorted(written.tolist()))
        return next((values for values in rows if values is not None), None)

    def read_span(self, ticket: Ticket, first: int, last: int) -> tuple[Floats, Masks]:
        """Values of the prefixes of ``first`` to ``last`` tokens, as ``TableView.read_span``."""
        return self._view.read_span(ticket, first, last)

    @property
    def is_full(self) -> bool:
        """Whether all slots are in use."""
        return not self._free

    def close(self) -> None:
        """Removes the table's file; mapped views stay readable."""
        if self._lock is not None:
            Path(self.path).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


class TablePool:
    """Shared tables whose tickets have as many rows as asked for, made as they are needed.

    A table has tickets of one length, a power of two. Each further table of a length has twice the
    slots of the one before, so that there are few.

    Args:
        columns: values per row.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._by_length: dict[int, list[SharedTable]] = {}
        self._by_path: dict[str, SharedTable] = {}

    @contextmanager
    def ticket(self, length: int) -> Iterator[Ticket]:
        """Issues a ticket of at least ``length`` rows; releases it at the end of the context."""
        table = self._with_a_slot(1 << max(_LEAST_LENGTH, length - 1).bit_length())
        with table.ticket() as ticket:
            yield ticket

    def read_span(self, ticket: Ticket, first: int, last: int) -> tuple[Floats, Masks]:
        """Values of the prefixes of ``first`` to ``last`` tokens, as ``TableView.read_span``."""
        return self._by_path[ticket.path].read_span(ticket, first, last)

    def close(self) -> None:
        """Removes the tables' files."""
        for table in self._by_path.values():
            table.close()

    def _with_a_slot(self, length: int) -> SharedTable:
        tables = self._by_length.setdefault(length, [])
        for table in tables:
            if not table.is_full:
                return table
        slots = max(1, _POOL_ROWS // length) << len(tables)
        table = SharedTable(slots=slots, length=length, columns=self._columns)
        tables.append(table)
        self._by_path[table.path] = table
        return table


def _remove_abandoned(folder: Path) -> None:
    """Removes the tables that killed servers of this user have left."""
    for path in folder.glob(f"{_PREFIX}*"):
        # An OSError means that the file is locked, another user's, or gone.
        with suppress(OSError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
