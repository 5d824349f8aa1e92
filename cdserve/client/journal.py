"""A file of records by key, one a line, written as they are made: a stopped run goes on from it."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from cdserve.errors import ConfigError

Record = Mapping[str, Any]


class Journal:
    """Records in a JSONL file, each under a key of its own; used as a context.

    A line that a stopped run has left unfinished is cut off when the file is opened again. Memory
    holds the keys alone.

    Args:
        path: the file; it is made where it is missing.
        key: the field whose value is a record's key.

    Raises:
        ConfigError: the file holds something else, or another run writes to it.
    """

    def __init__(self, path: Path, key: str = "id") -> None:
        self._path = path
        self._key = key
        self._starts: dict[Any, int] = {}
        """Where in the file each record begins, in bytes."""
        self._end = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            file = stack.enter_context(self._path.open("a+b"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{self._path}: another run writes to it") from None
            file.seek(0)
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    self._take(line, number)
            file.truncate(self._end)
            stack.pop_all()
        self._file = file
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, key: object) -> bool:
        return key in self._starts

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Record]:
        """The records in the order of their keys."""
        with self._path.open("rb") as file:
            for key in sorted(self._starts):
                file.seek(self._starts[key])
                yield json.loads(file.readline())

    def add(self, record: Record) -> None:
        """Writes a record, which the file keeps even if this process dies next.

        Raises:
            ValueError: there is one under its key already.
        """
        key = record[self._key]
        if key in self._starts:
            raise ValueError(f"{self._path} has a record of {key!r} already")
        assert self._file is not None
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._keep(key, line)

    def _take(self, line: bytes, number: int) -> None:
        try:
            self._keep(json.loads(line)[self._key], line)
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{self._path}, line {number}, is no record: {error}") from error

    def _keep(self, key: Any, line: bytes) -> None:
        self._starts[key] = self._end
        self._end += len(line)
