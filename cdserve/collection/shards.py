"""A data set in JSONL files of bounded size, named ``{name}-00000-of-00003.jsonl``."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

_SHARD = re.compile(r"(?P<name>.+)-\d{5,}-of-\d{5,}\.jsonl")


class Shards:
    """Writes a data set; a context manager.

    On success all files are renamed into place at once and replace the previous ones. On failure
    the previous files stay.

    Args:
        folder: folder of the files; must exist.
        name: prefix of the file names.
        size: maximum number of rows per file.
    """

    def __init__(self, folder: Path, name: str, size: int) -> None:
        self._folder = folder
        self._name = name
        self._size = size
        self._partial: list[Path] = []
        self._file: TextIO | None = None
        self.rows = 0
        self.files: list[str] = []
        """Names of the files; empty until the context ends."""

    def __enter__(self) -> Self:
        for path in self._folder.glob(f".{self._name}-?????.partial"):  # of a run that was killed
            path.unlink()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None:
            self._publish()
        else:
            for path in self._partial:
                path.unlink()

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes a row."""
        if self.rows % self._size == 0:
            self._next()
        assert self._file is not None
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        self.rows += 1

    def _next(self) -> None:
        if self._file is not None:
            self._file.close()
        path = self._folder / f".{self._name}-{len(self._partial):05d}.partial"
        self._partial.append(path)
        self._file = path.open("w", encoding="utf-8")

    def _publish(self) -> None:
        remove_shards(self._folder, {self._name})
        for number, path in enumerate(self._partial):
            name = f"{self._name}-{number:05d}-of-{len(self._partial):05d}.jsonl"
            path.replace(self._folder / name)
            self.files.append(name)


def remove_shards(folder: Path, names: Collection[str]) -> None:
    """Removes the files of the named data sets."""
    for path in folder.glob("*.jsonl"):
        match = _SHARD.fullmatch(path.name)
        if match and match["name"] in names:
            path.unlink()
