"""The README of a folder of training data, with the metadata that ``datasets`` reads."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FILE = "README.md"


@dataclass(slots=True, kw_only=True)
class DataSet:
    """The rows of one format.

    Attributes:
        name: prefix of the files, and the name for ``datasets.load_dataset(folder, name)``.
        features: the columns' types, for ``dataset_info``; None to leave them to ``datasets``.
        left_out: number of omitted prompts by reason; for ``unpaired``, of omitted responses.
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
    folder: Path,
    settings: Mapping[str, Any],
    filters: Mapping[str, Any],
    data_sets: Sequence[DataSet],
) -> None:
    """Writes the README; data sets without rows are left out of its metadata.

    Args:
        settings: how the answers were drawn.
        filters: the filters of the rows.
    """
    configs = [
        {"config_name": data.name, "data_files": [{"split": "train", "path": data.files}]}
        for data in data_sets
        if data.files
    ]
    types = [
        {"config_name": data.name, "features": data.features}
        for data in data_sets
        if data.features is not None
    ]
    head = yaml.safe_dump({"configs": configs, "dataset_info": types}, sort_keys=False)
    tables = "\n\n".join(
        f"{title}:\n\n```yaml\n{yaml.safe_dump(dict(content), sort_keys=False)}```"
        for title, content in (
            ("Settings of the answers", settings),
            ("Filters of the rows", filters),
        )
    )
    lines = "\n".join(f"- {data}" for data in data_sets)
    text = f"---\n{head}---\n# Collected with `cdserve collect`\n\n{lines}\n\n{tables}\n"
    partial = folder / f".{FILE}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / FILE)
