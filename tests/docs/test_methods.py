"""docs/methods.md has the source, files, mapping and deviations of each method."""

import re

from cdserve import decoders

from .blocks import ROOT

PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| .* \|$", PAGE.partition("\n## ")[0], re.MULTILINE)
ROWS = [line.strip("| ").split(" | ") for line in LINES]


def test_every_method_row_has_five_filled_cells() -> None:
    assert len(ROWS) > 20
    for row in ROWS:
        assert len(row) == 5, row
        assert all(cell.strip() for cell in row), row


def test_every_built_in_method_has_a_row() -> None:
    named = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[0])}
    assert set(decoders.load([])) <= named


def test_files_of_method_rows_exist() -> None:
    packages = [ROOT / "cdserve", ROOT]
    for row in ROWS[1:]:
        for file in re.findall(r"`([\w/]+\.py)`", row[2]):
            assert any((package / file).is_file() for package in packages), file
