"""An append-only file of records by key, from which an interrupted run resumes."""

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
    """Records with unique keys in a JSONL file; a context manager.

    Opening the file cuts off a last line that an interrupted run left incomplete. Only the keys are
    kept in memory.

    Args:
        path: the file, created if missing.
        key: name of the field that is a record's key.

    Raises:
        ConfigError: a line is not a record, or another run has the file open.
    """

    def __init__(self, path: Path, key: str = "id") -> None:
        self._path = path
        self._key = key
        self._starts: dict[Any, int] = {}
        """Byte offset of each record in the file, by key."""
        self._end = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            file = stack.enter_context(self._path.open("a+b"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{self._path}: another run is writing to it") from None
            file.seek(0)
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    self._read(line, number)
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
        """The records, ordered by key."""
        with self._path.open("rb") as file:
            for key in sorted(self._starts):
                file.seek(self._starts[key])
                yield json.loads(file.readline())

    def add(self, record: Record) -> None:
        """Writes a record and flushes it, so that it survives this process.

        Raises:
            ValueError: the key is taken, or the record is not valid JSON.
        """
        key = record[self._key]
        if key in self._starts:
            raise ValueError(f"{self._path} already has a record {key!r}")
        assert self._file is not None
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._register(key, line)

    def _read(self, line: bytes, number: int) -> None:
        try:
            self._register(json.loads(line)[self._key], line)
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{self._path}, line {number}: not a record: {error}") from error

    def _register(self, key: Any, line: bytes) -> None:
        self._starts[key] = self._end
        self._end += len(line)
