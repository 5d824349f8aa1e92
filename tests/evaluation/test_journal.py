"""A journal across runs, however they ended."""

import json
from pathlib import Path

import pytest

from cdserve.client.journal import Journal
from cdserve.errors import ConfigError


def written(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "of" / "records.jsonl"
    with Journal(path) as journal:
        journal.add({"id": "b", "text": "Grüße\n"})
        assert path.read_text(encoding="utf-8").endswith("\n")  # on disk before it is closed
    with Journal(path) as journal:
        assert len(journal) == 1
        assert "b" in journal
        assert "a" not in journal
        journal.add({"id": "a", "text": ""})
        assert [record["id"] for record in journal] == ["a", "b"]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["b", "a"]


@pytest.mark.parametrize("torn", ['{"id": 2, "te', '{"id": 2}', "{", "\u00fc"])
def test_a_line_without_an_end_is_cut_off(torn: str, tmp_path: Path) -> None:
    path = written(tmp_path / "records.jsonl", {"id": 1})
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)
    with Journal(path) as journal:
        assert [record["id"] for record in journal] == [1]
        journal.add({"id": 2})
    assert path.read_text() == '{"id": 1}\n{"id": 2}\n'


def test_a_character_that_is_torn_in_two(tmp_path: Path) -> None:
    path = written(tmp_path / "records.jsonl", {"id": 1})
    with path.open("ab") as file:
        file.write('{"id": 2, "text": "ü'.encode()[:-1])
    with Journal(path) as journal:
        assert len(journal) == 1


def test_only_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"id":')
    with Journal(path) as journal:
        assert len(journal) == 0
    assert path.read_text() == ""


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"text": "no id"}', "", '{"id": []}'])
def test_what_is_no_record_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f'{{"id": 1}}\n{line}\n')
    with pytest.raises(ConfigError, match=r"records\.jsonl, line 2: not a record"):
        Journal(path).__enter__()
    assert path.read_text() == f'{{"id": 1}}\n{line}\n'


def test_a_key_has_one_record(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Journal(path) as journal:
        journal.add({"id": 1, "text": "first"})
        with pytest.raises(ValueError, match="already has a record 1"):
            journal.add({"id": 1, "text": "second"})
    assert path.read_text() == '{"id": 1, "text": "first"}\n'


def test_what_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Journal(path) as journal, pytest.raises(ValueError, match="not JSON compliant"):
        journal.add({"id": 1, "reward": float("nan")})
    assert path.read_text() == ""


def test_another_key(tmp_path: Path) -> None:
    with Journal(written(tmp_path / "records.jsonl", {"prompt": 4}), key="prompt") as journal:
        assert 4 in journal


def test_one_run_writes_to_it(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Journal(path), pytest.raises(ConfigError, match="another run is writing to it"):
        Journal(path).__enter__()
    with Journal(path) as journal:
        journal.add({"id": 1})
