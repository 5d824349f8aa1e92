"""A journal across complete and interrupted runs."""

import json
from pathlib import Path

import pytest

from cdserve.client.journal import Journal
from cdserve.errors import ConfigError


def written(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_reopened_journal_has_the_previous_records(tmp_path: Path) -> None:
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
def test_incomplete_last_line_is_cut_off(torn: str, tmp_path: Path) -> None:
    path = written(tmp_path / "records.jsonl", {"id": 1})
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)
    with Journal(path) as journal:
        assert [record["id"] for record in journal] == [1]
        journal.add({"id": 2})
    assert path.read_text() == '{"id": 1}\n{"id": 2}\n'


def test_incomplete_last_character_is_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path / "records.jsonl", {"id": 1})
    with path.open("ab") as file:
        file.write('{"id": 2, "text": "ü'.encode()[:-1])
    with Journal(path) as journal:
        assert len(journal) == 1


def test_file_with_only_an_incomplete_line_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"id":')
    with Journal(path) as journal:
        assert len(journal) == 0
    assert path.read_text() == ""


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"text": "no id"}', "", '{"id": []}'])
def test_error_names_the_line_that_is_not_a_record(line: str, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f'{{"id": 1}}\n{line}\n')
    with pytest.raises(ConfigError, match=r"records\.jsonl, line 2: not a record"):
        Journal(path).__enter__()
    assert path.read_text() == f'{{"id": 1}}\n{line}\n'


def test_second_record_with_the_same_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Journal(path) as journal:
        journal.add({"id": 1, "text": "first"})
        with pytest.raises(ValueError, match="already has a record 1"):
            journal.add({"id": 1, "text": "second"})
    assert path.read_text() == '{"id": 1, "text": "first"}\n'


def test_record_that_is_not_valid_json_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Journal(path) as journal, pytest.raises(ValueError, match="not JSON compliant"):
        journal.add({"id": 1, "reward": float("nan")})
    assert path.read_text() == ""


def test_key_field_can_be_chosen(tmp_path: Path) -> None:
    with Journal(written(tmp_path / "records.jsonl", {"prompt": 4}), key="prompt") as journal:
        assert 4 in journal


def test_second_writer_of_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Journal(path), pytest.raises(ConfigError, match="another run is writing to it"):
        Journal(path).__enter__()
    with Journal(path) as journal:
        journal.add({"id": 1})
