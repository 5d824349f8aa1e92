"""The Python of docs/heads.md works as printed."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cdserve.demo.tiny import MODEL_DIR
from value_heads import ValueHead, check_base

PAGE = Path(__file__).parents[2] / "docs" / "heads.md"


def blocks() -> list[str]:
    """The page's Python: a reward, and a script that trains a head."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def code() -> str:
    _, training = blocks()
    return training


def test_the_pages_reward_is_lower_the_more_personal_a_text_is() -> None:
    space: dict[str, Any] = {}
    exec(compile(blocks()[0], str(PAGE), "exec"), space)
    texts = ["It boils fast.", "I love the kettle, it boils fast.", "I love my kettle."]
    rewards = [space["impersonal"]("", text) for text in texts]
    assert rewards[0] == 1
    assert rewards == sorted(set(rewards), reverse=True)


def test_the_training_script_has_under_thirty_lines() -> None:
    lines = [line for line in code().splitlines() if line.strip()]
    assert len([line for line in lines if "import" not in line]) < 30


def test_the_training_script_trains_a_head_that_predicts_its_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    shutil.copytree(MODEL_DIR, tmp_path / "cdserve" / "demo" / "tiny" / "artifacts" / "model")
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    exec(compile(code(), str(PAGE), "exec"), space)
    head = ValueHead.from_pretrained("long-head")
    check_base(head.config, MODEL_DIR)
    assert head.config.rewards == ("long",)
    assert float(capsys.readouterr().out) > 0.25, "the head does not predict the reward"
