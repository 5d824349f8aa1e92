"""The page on heads trains one, as it stands there."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from cdserve.demo import MODEL_DIR
from value_heads import ValueHead, check_base

PAGE = Path(__file__).parents[2] / "docs" / "heads.md"


def code() -> str:
    (found,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


def test_it_takes_under_thirty_lines() -> None:
    lines = [line for line in code().splitlines() if line.strip()]
    assert len([line for line in lines if "import" not in line]) < 30


def test_it_trains_a_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    shutil.copytree(MODEL_DIR, tmp_path / "cdserve" / "demo" / "artifacts" / "model")
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    exec(compile(code(), str(PAGE), "exec"), space)
    head = ValueHead.from_pretrained("long-head")
    check_base(head.config, MODEL_DIR)
    assert head.config.rewards == ("long",)
    assert float(capsys.readouterr().out) > 0.25, "it does not see the reward coming"
