"""`cdserve heads` from the command line."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from cdserve.cli import main
from cdserve.demo.tiny import HEAD_DIR, MODEL_DIR, Q_HEAD_DIR, TUNED_DIR
from value_heads import ValueHead


class TestInspect:
    def test_inspect_describes_a_value_head(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["heads", "inspect", str(HEAD_DIR), "--base", str(MODEL_DIR)])
        output = capsys.readouterr().out
        assert output.startswith("Value head, mlp, kind mean, ")
        assert "reward sentiment: shift" in output
        assert "input: hidden_states[-1] after the final norm, width 256" in output
        assert f"matches {MODEL_DIR}" in output

    def test_inspect_describes_a_q_head(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["heads", "inspect", str(Q_HEAD_DIR)])
        output = capsys.readouterr().out
        assert output.startswith("Q-head, lowrank, kind mean, ")
        assert "values of 1536 next tokens" in output

    def test_inspect_refuses_another_base(self) -> None:
        with pytest.raises(SystemExit, match=r"cdserve: --base: base_hash of the head"):
            main(["heads", "inspect", str(HEAD_DIR), "--base", str(TUNED_DIR)])

    def test_inspect_refuses_a_folder_without_a_head(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=rf"cdserve: {tmp_path}: .*config\.json"):
            main(["heads", "inspect", str(tmp_path)])


class TestImport:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        tensors = {"v_head.summary.weight": torch.ones(1, 8), "v_head.summary.bias": torch.ones(1)}
        save_file(tensors, folder / "model.safetensors")
        return folder

    def test_import_writes_a_head_and_does_not_overwrite(
        self, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "head"
        command = ["heads", "import", str(checkpoint), str(out), "--base-model", "tiny"]
        main([*command, "--rewards", "helpful"])
        assert capsys.readouterr().out == f"{out}: rewards helpful, input width 8\n"
        assert ValueHead.from_pretrained(out)(torch.ones(8)).tolist() == [9.0]
        with pytest.raises(SystemExit, match=f"cdserve: {out} already exists"):
            main(command)

    def test_import_refuses_a_checkpoint_without_safetensors(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"cdserve: .* has no \.safetensors file"):
            main(["heads", "import", str(tmp_path), str(tmp_path / "x"), "--base-model", "tiny"])


class TestPush:
    """With two replaced calls of the Hub's client, since the tests have no network."""

    def test_push_uploads_the_folder_and_prints_the_commit(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        calls: list[tuple[str, dict[str, Any]]] = []

        class Done:
            commit_url = "https://hub/commit/1"

        def create(self: Any, repository: str, **options: Any) -> None:
            calls.append((repository, options))

        def upload(self: Any, **options: Any) -> Done:
            calls.append((options.pop("repo_id"), options))
            return Done()

        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
        monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
        main(["heads", "push", str(HEAD_DIR), "me/head", "--private"])
        assert capsys.readouterr().out == "https://hub/commit/1\n"
        created, uploaded = calls
        assert created == ("me/head", {"private": True, "exist_ok": True})
        assert uploaded[1]["folder_path"] == HEAD_DIR
        assert "README.md" in uploaded[1]["allow_patterns"]

    def test_push_rejects_a_folder_without_a_head(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"cdserve: .*config\.json"):
            main(["heads", "push", str(tmp_path), "me/head"])


def test_heads_refuses_an_unknown_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["heads", "inspect", str(HEAD_DIR), "--bogus"])
    assert "unrecognized arguments: --bogus" in capsys.readouterr().err
