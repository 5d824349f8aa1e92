"""The build script end to end, at a tiny scale."""

import json
from pathlib import Path

import pytest
import torch

from cdserve.demo.tiny.build.folders import load_model
from cdserve.demo.tiny.build.stages import QUICK, STAGES, run
from value_heads import QHead, ValueHead, check_base


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    build(folder)
    return folder


def build(folder: Path, *only: str) -> None:
    """Runs the script's stages, all unless named, and leaves torch as it was."""
    with pytest.MonkeyPatch.context() as patch:
        # It asks for two threads, which wait for each other on a core that other tests share.
        patch.setattr(torch, "set_num_threads", lambda _: None)
        run(folder, QUICK, only or STAGES)
    torch.use_deterministic_algorithms(False)


def test_quick_build_makes_all_artefacts(out: Path) -> None:
    assert len((out / "prompts.jsonl").read_text().splitlines()) >= 256
    artifacts = out / "artifacts"
    for name in ("model", "members/ref", "members/tuned"):
        files = {path.name for path in (artifacts / name).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= (
            files
        )
        load_model(artifacts / name)
    head = ValueHead.from_pretrained(artifacts / "heads" / "sentiment")
    check_base(head.config, artifacts / "model")
    for name in ("sentiment-q", "sentiment-cdq"):
        q_head = QHead.from_pretrained(artifacts / "heads" / name)
        check_base(q_head.config, artifacts / "model")
    card = (artifacts / "heads" / "sentiment" / "README.md").read_text()
    assert "## Held-out responses" in card
    assert (artifacts / "heads" / "sentiment" / "report.png").stat().st_size > 10_000
    report = json.loads((artifacts / "report.json").read_text())
    assert report.keys() == {"model", "members", "heads"}


def test_repeated_stage_writes_identical_files(out: Path) -> None:
    weights = out / "artifacts" / "members" / "tuned" / "model.safetensors"
    before = weights.read_bytes()
    build(out, "members")
    assert weights.read_bytes() == before


def test_model_folder_has_float16_weights_and_float32_config(out: Path) -> None:
    folder = out / "artifacts" / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["architectures"] == ["LlamaForCausalLM"]
    model = load_model(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (folder / "model.safetensors").stat().st_size < 2.1 * model.num_parameters()
