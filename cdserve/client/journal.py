"""A file of records by key, one a line, written as they are made: a stopped run goes on from it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from cdserve.errors import ConfigError

Record = Mapping[str, Any]


class Journal:
    """Records in a JSONL file, each under a key of its own; used as a context.

    A line that a stopped run has left unfinished is cut off when the file is opened again.

    Args:
        path: the file; it is made where it is missing.
        key: the field whose value is a record's key.

    Raises:
        ConfigError: the file holds something else.
    """

    def __init__(self, path: Path, key: str = "id") -> None:
        self._path = path
        self._key = key
        self._records: dict[Any, Record] = {}
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if self._path.exists():
            content = self._path.read_bytes()
            whole = content.rfind(b"\n") + 1
            for number, line in enumerate(content[:whole].splitlines(), 1):
                self._take(line, number)
        self._file = self._path.open("a", encoding="utf-8")
        self._file.truncate(whole)
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
        return key in self._records

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        """The records in the order of their keys."""
        return (self._records[key] for key in sorted(self._records))

    def add(self, record: Record) -> None:
        """Writes a record, which the file keeps even if this process dies next.

        Raises:
            ValueError: there is one under its key already.
        """
        key = record[self._key]
        if key in self._records:
            raise ValueError(f"{self._path} has a record of {key!r} already")
        assert self._file is not None
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        self._records[key] = record

    def _take(self, line: bytes, number: int) -> None:
        try:
            record = json.loads(line)
            self._records[record[self._key]] = record
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{self._path}, line {number}, is no record: {error}") from error
