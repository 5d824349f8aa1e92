"""Values on their way from the worker to the server: a table in shared memory.

The server hands out a ticket (some rows) with every request whose values it wants. In vLLM's step
the worker writes V(prefix) into the ticket's rows. The server reads once the request's output has
arrived, which the worker sent after it wrote. So values cost no message, no waiting and no work per
token on the server's side (measured against the alternatives in docs/log.md). Worker and server
must share a machine's memory.

A row carries the ticket and the prefix length it was written for: what was never written, or was
overwritten, reads as missing, never as another prefix's value.

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

_EMPTY = -1
_PREFIX = "cdserve-values-"


@dataclass(frozen=True, slots=True)
class Ticket:
    """Rows ``offset .. offset + length`` of the table at ``path``, for one engine request."""

    path: str
    number: int
    offset: int
    length: int

    def to_wire(self) -> list[str | int]:
        """As it rides in ``SamplingParams.extra_args``."""
        return [self.path, self.number, self.offset, self.length]

    @classmethod
    def from_wire(cls, wire: list[str | int]) -> "Ticket":
        path, number, offset, length = wire
        return cls(str(path), int(number), int(offset), int(length))


class TableView:
    """The mapped table; both sides open one."""

    def __init__(self, path: str, rows: int, columns: int) -> None:
        self.keys: npt.NDArray[np.int64] = np.memmap(
            path, dtype=np.int64, mode="r+", shape=(rows, 2)
        )
        self.values: npt.NDArray[np.float32] = np.memmap(
            path, dtype=np.float32, mode="r+", offset=rows * 16, shape=(rows, columns)
        )

    @classmethod
    def open(cls, path: str, columns: int) -> "TableView":
        """Maps an existing table of ``columns`` values a row."""
        rows, rest = divmod(os.stat(path).st_size, 16 + 4 * columns)
        if rest:
            raise ValueError(f"value table {path} does not hold rows of {columns} values")
        return cls(path, rows, columns)

    def write(
        self,
        rows: npt.NDArray[np.int64],
        tickets: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        values: npt.NDArray[np.float32],
    ) -> None:
        """Writes values ``[N, G]`` of prefixes of ``lengths`` tokens ``[N]`` into ``rows`` [N]."""
        self.keys[rows, 0] = _EMPTY
        self.values[rows] = values
        self.keys[rows, 1] = lengths
        self.keys[rows, 0] = tickets

    def read(self, ticket: Ticket, length: int) -> npt.NDArray[np.float32] | None:
        """The values of the prefix of ``length`` tokens, ``[G]``; None if they are not there."""
        row = ticket.offset + length % ticket.length
        values = np.array(self.values[row])
        written = self.keys[row, 0] == ticket.number and self.keys[row, 1] == length
        return values if written else None


class SharedTable:
    """The server's side: makes the table, hands out tickets, reads values.

    It holds a lock on its file while its process lives; tables that nobody holds are of servers
    that were killed, and are removed first.

    Args:
        slots: tickets that can be out at once.
        length: rows a ticket; V of a prefix of n tokens goes to row n modulo ``length``.
        columns: values a row (the heads' outputs, in order).
    """

    def __init__(self, *, slots: int, columns: int, length: int = 1) -> None:
        folder = Path("/dev/shm") if os.path.isdir("/dev/shm") else Path(tempfile.gettempdir())
        _remove_abandoned(folder)
        self._lock: int | None
        self._lock, made = tempfile.mkstemp(dir=folder)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = str(folder / f"{_PREFIX}{Path(made).name}")  # only now, when it is held
        os.rename(made, self.path)
        os.truncate(self._lock, slots * length * (16 + 4 * columns))
        self._view = TableView(self.path, slots * length, columns)
        self._view.keys[:] = _EMPTY
        self._length = length
        # First in, first out: a slot rests as long as possible before it is used again.
        self._free = deque(range(slots))
        self._issued = 0

    def acquire(self) -> Ticket:
        """A ticket for one engine request.

        Raises:
            RuntimeError: all slots are out.
        """
        if not self._free:
            raise RuntimeError("the value table is full: more candidates are alive than it has")
        self._issued += 1
        return Ticket(self.path, self._issued, self._free.popleft() * self._length, self._length)

    @contextmanager
    def ticket(self) -> Iterator[Ticket]:
        """A ticket that is given back at the end.

        Raises:
            RuntimeError: all slots are out.
        """
        ticket = self.acquire()
        try:
            yield ticket
        finally:
            self.release(ticket)

    def release(self, ticket: Ticket) -> None:
        """Gives the ticket's rows back."""
        self._free.append(ticket.offset // self._length)

    def read(self, ticket: Ticket, length: int) -> npt.NDArray[np.float32] | None:
        """V of the prefix of ``length`` tokens, ``[G]``; None if it was not computed."""
        return self._view.read(ticket, length)

    def read_from(self, ticket: Ticket, length: int) -> npt.NDArray[np.float32] | None:
        """The values of the shortest prefix of at least ``length`` tokens that still has any.

        The worker may be any number of tokens ahead of the outputs that have arrived, and writes
        over the rows of shorter prefixes.
        """
        keys = self._view.keys[ticket.offset : ticket.offset + ticket.length]
        written = keys[(keys[:, 0] == ticket.number) & (keys[:, 1] >= length), 1]
        found = (self.read(ticket, later) for later in sorted(written.tolist()))
        return next((values for values in found if values is not None), None)

    def close(self) -> None:
        """Removes the table; views that are still mapped stay readable."""
        if self._lock is not None:
            Path(self.path).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


def _remove_abandoned(folder: Path) -> None:
    """Removes the tables of this user's servers that were killed."""
    for path in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError), path.open("r+b") as file:  # alive, another user's, or gone by now
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
