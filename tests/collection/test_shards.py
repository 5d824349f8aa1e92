"""Shards of a data set: names, sizes, and replacement of previous files."""

import json
from pathlib import Path

import pytest

from cdserve.collection.shards import Shards, remove_shards


def write(folder: Path, name: str, rows: int, size: int = 3) -> list[str]:
    """Writes numbered rows; returns the files' names."""
    with Shards(folder, name, size) as shards:
        for number in range(rows):
            shards.add({"number": number, "text": "é\u2028\n"})
    return shards.files


def numbers(folder: Path, *files: str) -> list[int]:
    """The numbers of the rows in the files, in order."""
    lines = [line for file in files for line in (folder / file).read_bytes().split(b"\n")[:-1]]
    assert all(json.loads(line)["text"] == "é\u2028\n" for line in lines)
    return [json.loads(line)["number"] for line in lines]


@pytest.mark.parametrize(("rows", "count"), [(0, 0), (1, 1), (3, 1), (4, 2), (7, 3)])
def test_rows_are_split_into_files_of_bounded_size(tmp_path: Path, rows: int, count: int) -> None:
    files = write(tmp_path, "sft", rows)
    assert files == [f"sft-{i:05d}-of-{count:05d}.jsonl" for i in range(count)]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert numbers(tmp_path, *files) == list(range(rows))
    assert all(len(numbers(tmp_path, file)) <= 3 for file in files)


def test_new_files_replace_previous_files_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, "sft", 7)
    others = write(tmp_path, "sft-chat", 4)
    files = write(tmp_path, "sft", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*files, *others])


def test_failure_keeps_previous_files(tmp_path: Path) -> None:
    before = write(tmp_path, "sft", 7)
    with pytest.raises(TypeError), Shards(tmp_path, "sft", 1) as shards:
        _ = [shards.add({"number": value}) for value in (1.0, object())]
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert numbers(tmp_path, *before) == list(range(7))


def test_partial_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".sft-00004.partial").write_text("{")
    files = write(tmp_path, "sft", 1)
    assert [path.name for path in tmp_path.iterdir()] == files


def test_files_that_are_not_shards_are_kept(tmp_path: Path) -> None:
    for name in ("answers.jsonl", "sft.jsonl", "sft-1-of-2.jsonl", "x-00000-of-00001.jsonl"):
        (tmp_path / name).write_text("")
    write(tmp_path, "sft", 4)
    remove_shards(tmp_path, {"sft", "preference"})
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"answers.jsonl", "sft.jsonl", "sft-1-of-2.jsonl", "x-00000-of-00001.jsonl"}
