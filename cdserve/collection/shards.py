"""JSONL files of a bounded number of rows, named ``{name}-00000-of-00003.jsonl``."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

_SHARD = re.compile(r"(?P<name>.+)-\d{5,}-of-\d{5,}\.jsonl")


class Shards:
    """A data set being written; used as a context.

    Its files take their names once all of them are written, and those of before are gone then. If
    something fails, those of before stay.

    Args:
        folder: of the files; it must exist.
        name: what their names begin with.
        size: rows a file.
    """

    def __init__(self, folder: Path, name: str, size: int) -> None:
        self._folder = folder
        self._name = name
        self._size = size
        self._partial: list[Path] = []
        self._file: TextIO | None = None
        self.rows = 0
        self.files: list[str] = []
        """Names of the files, once they are there."""

    def __enter__(self) -> Self:
        for left in self._folder.glob(f".{self._name}-?????.partial"):  # by a run that was killed
            left.unlink()
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
    """Removes the files of the data sets of these names."""
    for path in folder.glob("*.jsonl"):
        found = _SHARD.fullmatch(path.name)
        if found and found["name"] in names:
            path.unlink()
