"""`cdserve collect` with a method of another package."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cdserve.cli import main
from tests.server.served import Served
from tests.server.wire import PROMPT

POLICY = {"method": "good_enough", "threshold": -1e6, "max_draws": 4, "rewards": {"variety": 1}}


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("method", "whole"), [("best_of_n", True), ("good_enough", True), ("blockwise_cd", False)]
)
def test_discovery_says_which_methods_select_whole_responses(
    http: httpx2.Client, method: str, whole: bool
) -> None:
    assert http.get("/v1/alignment").json()["methods"][method]["whole_responses"] is whole


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A file with one prompt."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": PROMPT}) + "\n")
    return path


def test_collect_keeps_all_candidates_of_another_packages_method(
    server: Served, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "data"
    arguments = ["--prompts", str(prompts), "--out", str(out), "--policy", json.dumps(POLICY)]
    formats = ["--max-tokens", "16", "--format", "candidates", "preference"]
    main(["collect", "--url", server.base_url, *arguments, *formats])
    (row,) = rows(out / "candidates-00000-of-00001.jsonl")
    (record,) = rows(out / "answers.jsonl")
    assert len(row["candidates"]) == record["report"]["candidates"] == 4
    assert json.loads((out / "settings.json").read_text())["whole_responses"] is True
