"""The README of a folder of training data, with what ``datasets`` has to know to load it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FILE = "README.md"


@dataclass(slots=True, kw_only=True)
class DataSet:
    """What was written in one format.

    Attributes:
        name: of its files, and for ``datasets.load_dataset(folder, name)``.
        features: the columns' types, for ``dataset_info``; None to leave them to ``datasets``.
        left_out: numbers by reason: of prompts, or of responses where each makes a row.
    """

    name: str
    rows: int = 0
    files: list[str] = field(default_factory=list)
    features: list[dict[str, Any]] | None = None
    left_out: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        files = f"{len(self.files)} file{'' if len(self.files) == 1 else 's'}"
        return f"{self.name}: {self.rows} rows in {files}; left out: {left_out or 'none'}"


def write_card(
    folder: Path, settings: Mapping[str, Any], filters: Mapping[str, Any], made: Sequence[DataSet]
) -> None:
    """Writes it; data sets without rows are not offered to ``datasets``.

    Args:
        settings: how the answers were drawn.
        filters: what rows were left out by.
    """
    configs = [
        {"config_name": one.name, "data_files": [{"split": "train", "path": one.files}]}
        for one in made
        if one.files
    ]
    types = [
        {"config_name": one.name, "features": one.features}
        for one in made
        if one.features is not None
    ]
    head = yaml.safe_dump({"configs": configs, "dataset_info": types}, sort_keys=False)
    tables = "\n\n".join(
        f"{title}:\n\n```yaml\n{yaml.safe_dump(dict(content), sort_keys=False)}```"
        for title, content in (("Answers drawn with", settings), ("Rows left out by", filters))
    )
    lines = "\n".join(f"- {one}" for one in made)
    text = f"---\n{head}---\n# Collected with `cdserve collect`\n\n{lines}\n\n{tables}\n"
    partial = folder / f".{FILE}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / FILE)
