"""A LoRA adapter of the demo's model with small random weights, in PEFT's format."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from cdserve.demo.tiny import MODEL_DIR

_RANK = 8
_TARGETS = ("q_proj", "v_proj")


def write_adapter(folder: Path) -> None:
    """Writes the adapter into an existing folder."""
    model, draw, weights = AutoModelForCausalLM.from_pretrained(MODEL_DIR), torch.Generator(), {}
    draw.manual_seed(0)
    for name, layer in model.named_modules():
        if name.endswith(_TARGETS):
            into, out = (
                0.1 * torch.randn(size, _RANK, generator=draw) for size in layer.weight.T.shape
            )
            weights[f"base_model.model.{name}.lora_A.weight"] = into.T.contiguous()
            weights[f"base_model.model.{name}.lora_B.weight"] = out
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _RANK, "target_modules": _TARGETS}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"bias": "none"}))
