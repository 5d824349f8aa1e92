"""`cdserve heads compare` from the command line."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cdserve.cli import main
from cdserve.demo.tiny import HEAD_DIR, MODEL_DIR, Q_HEAD_DIR, TUNED_DIR

GOLD = "gold=cdserve.demo.tiny.reward:sentiment_gold"
PRAISE = "I love this film. The plot was brilliant and the cast was superb."
BLAME = "I hate this film. The plot was dull and the cast was terrible."


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Praise and blame for each of four films."""
    path = tmp_path / "data.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"Review of the film number {i}:", "response": text}) + "\n"
            for i in range(4)
            for text in (PRAISE, BLAME)
        )
    )
    return path


def compare(folder: Path, *arguments: str) -> None:
    data, cache = str(folder / "data.jsonl"), str(folder / "cache")
    command = ["heads", "compare", "--model", str(MODEL_DIR), "--data", data, "--cache", cache]
    main([*command, *arguments])


def test_heads_are_compared_by_a_reward_that_they_did_not_learn(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy with the signs of its values turned has the pairs in the opposite order."""
    shutil.copytree(HEAD_DIR, turned := tmp_path / "turned")
    weights = load_file(turned / "model.safetensors")
    turn = {name: -weights[name] for name in ("net.2.weight", "net.2.bias")}
    save_file(weights | turn, turned / "model.safetensors")
    out = tmp_path / "reports.json"
    heads = [HEAD_DIR, Q_HEAD_DIR, turned]
    compare(tmp_path, *map(str, heads), "--rewards", GOLD, "--out", str(out))
    reports = json.loads(out.read_text())
    assert list(reports) == [str(folder) for folder in heads]
    ours, q_head, opposite = (report["rewards"]["sentiment"] for report in reports.values())
    assert all(report["responses"] == 8 for report in reports.values())
    assert ours["pairs_at_end"] == q_head["pairs_by_number"][1]["accuracy"] == 1.0
    assert opposite["pairs_at_end"] == 0.0
    assert ours["selected"]["chosen"] == ours["selected"]["best"] > opposite["selected"]["chosen"]
    printed = capsys.readouterr().out
    assert "8 responses of " in printed
    (line,) = (line for line in printed.splitlines() if line.startswith(f"| {turned} |"))
    assert "| 0.000 |" in line


@pytest.mark.usefixtures("data")
def test_head_of_another_model_is_refused(tmp_path: Path) -> None:
    command = ["heads", "compare", str(HEAD_DIR), "--model", str(TUNED_DIR), "--rewards", GOLD]
    data = ["--data", str(tmp_path / "data.jsonl"), "--cache", str(tmp_path / "cache")]
    with pytest.raises(SystemExit, match=rf"cdserve: {HEAD_DIR}: base_hash of the head"):
        main([*command, *data])


@pytest.mark.usefixtures("data")
def test_number_of_rewards_must_be_that_of_the_outputs(tmp_path: Path) -> None:
    two = ["--rewards", GOLD, "brevity=tests.commands.rewards:brevity"]
    with pytest.raises(SystemExit, match=rf"cdserve: {HEAD_DIR}: rewards must be \[8, 1\]"):
        compare(tmp_path, str(HEAD_DIR), *two)


@pytest.mark.usefixtures("data")
def test_data_without_rewards_require_the_flag(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"data\.jsonl.*reward"):
        compare(tmp_path, str(HEAD_DIR))
