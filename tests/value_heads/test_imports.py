"""Heads out of checkpoints as TRL, OpenRLHF and Transformers write them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from value_heads import ValueHead, check_base, import_head

SIZE = 16
LLAMA = {
    "vocab_size": 40,
    "hidden_size": SIZE,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture
def backbone() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()


def states(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.model(ids).last_hidden_state
        return found


IDS = torch.tensor([[3, 7, 11, 2]])


class TestTRL:
    """`AutoModelForCausalLMWithValueHead`: the backbone's tensors and `v_head.summary.*`."""

    @pytest.fixture
    def summary(self) -> nn.Linear:
        return nn.Linear(SIZE, 1)

    @pytest.fixture
    def folder(self, tmp_path: Path, backbone: LlamaForCausalLM, summary: nn.Linear) -> Path:
        backbone.config.save_pretrained(tmp_path)
        head = {f"v_head.summary.{k}": v for k, v in summary.state_dict().items()}
        own = {k: v.contiguous() for k, v in backbone.state_dict().items() if k != "lm_head.weight"}
        save_file({**own, **head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return tmp_path

    def test_imported_trl_head_gives_trls_values(
        self, folder: Path, backbone: LlamaForCausalLM, summary: nn.Linear
    ) -> None:
        hidden = states(backbone, IDS)
        head = import_head(folder, base_model="tiny", rewards=["helpful"])
        torch.testing.assert_close(head(hidden), summary(hidden))
        assert (head.config.rewards, head.config.base_model) == (("helpful",), "tiny")

    def test_imported_trl_head_saves_and_loads_as_any_head(
        self, folder: Path, tmp_path: Path
    ) -> None:
        head = import_head(folder, base_model="tiny", base_dir=folder)
        head.save_pretrained(tmp_path / "head")
        again = ValueHead.from_pretrained(tmp_path / "head")
        assert torch.equal(again.net.weight, head.net.weight)  # type: ignore[arg-type]
        check_base(again.config, folder)
        assert "TRL" in (tmp_path / "head" / "README.md").read_text()


class TestOpenRLHF:
    """Critics with `value_head.weight`, and rewards normalised by `mean` and `std`."""

    def test_imported_openrlhf_critic_gives_the_critics_values(
        self, tmp_path: Path, backbone: LlamaForCausalLM
    ) -> None:
        weight = torch.randn(1, SIZE)
        save_file({"value_head.weight": weight}, tmp_path / "model.safetensors")
        hidden = states(backbone, IDS)
        found = import_head(tmp_path, base_model="tiny")(hidden)
        torch.testing.assert_close(found, hidden @ weight.T)

    def test_imported_openrlhf_critic_keeps_normalised_rewards(
        self, tmp_path: Path, backbone: LlamaForCausalLM
    ) -> None:
        weight = torch.randn(1, SIZE)
        buffers = {"mean": torch.tensor([0.5]), "std": torch.tensor([2.0])}
        save_file({"value_head.weight": weight, **buffers}, tmp_path / "model.safetensors")
        hidden = states(backbone, IDS)
        found = import_head(tmp_path, base_model="tiny")(hidden)
        torch.testing.assert_close(found, (hidden @ weight.T - 0.5) / 2)


class TestClassification:
    """`score.weight`, as Transformers writes it, in one file and in shards."""

    @pytest.mark.parametrize("labels", [1, 3])
    @pytest.mark.parametrize("shard", ["5GB", "4KB"])
    @pytest.mark.parametrize(
        "kind", [AutoModelForSequenceClassification, AutoModelForTokenClassification]
    )
    def test_imported_classifier_gives_its_logits(
        self, tmp_path: Path, kind: type, labels: int, shard: str
    ) -> None:
        torch.manual_seed(1)
        config = LlamaConfig(**LLAMA, num_labels=labels, pad_token_id=0)
        model = kind.from_config(config).eval()  # type: ignore[attr-defined]
        model.save_pretrained(tmp_path, max_shard_size=shard)
        head = import_head(tmp_path, base_model="tiny", base_dir=tmp_path)
        with torch.inference_mode():
            expected = model(IDS).logits
            found = head(model.model(IDS).last_hidden_state)
        if kind is AutoModelForSequenceClassification:
            found = found[:, -1]
        torch.testing.assert_close(found, expected)
        names = ("reward",) if labels == 1 else ("LABEL_0", "LABEL_1", "LABEL_2")
        assert head.config.rewards == names

    def test_bfloat16_classifier_is_imported_as_float32(self, tmp_path: Path) -> None:
        weight = torch.randn(1, SIZE).bfloat16()
        save_file({"score.weight": weight}, tmp_path / "model.safetensors")
        assert torch.equal(
            import_head(tmp_path, base_model="tiny").net.weight,  # type: ignore[arg-type]
            weight.float(),
        )


class TestRefusals:
    def test_import_rejects_pickled_weights(self, tmp_path: Path) -> None:
        torch.save({"v_head.summary.weight": torch.zeros(1, SIZE)}, tmp_path / "pytorch_model.bin")
        with pytest.raises(FileNotFoundError, match=r"no \.safetensors file; convert"):
            import_head(tmp_path, base_model="tiny")

    @pytest.mark.parametrize(
        ("tensors", "refusal"),
        [
            ({"lm_head.weight": torch.zeros(2, 2)}, "it holds none"),
            (
                {"score.weight": torch.zeros(1, 4), "value_head.weight": torch.zeros(1, 4)},
                "it holds value_head.weight, score.weight",
            ),
            ({"score.weight": torch.zeros(4)}, r"must be \[outputs, hidden size\], got \[4\]"),
            (
                {"score.weight": torch.zeros(1, 4), "score.bias": torch.zeros(2)},
                r"score.bias must be \[1\], got \[2\]",
            ),
        ],
    )
    def test_import_rejects_folders_without_exactly_one_valid_head(
        self, tmp_path: Path, tensors: dict[str, Tensor], refusal: str
    ) -> None:
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=refusal):
            import_head(tmp_path, base_model="tiny")

    def test_import_rejects_names_that_do_not_match_the_outputs(self, tmp_path: Path) -> None:
        save_file({"score.weight": torch.zeros(2, 4)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "a"}}))
        with pytest.raises(ValueError, match="rewards must be 2 names, got 1"):
            import_head(tmp_path, base_model="tiny", rewards=["helpful"])
        assert import_head(tmp_path, base_model="tiny").config.rewards == ("reward_0", "reward_1")
