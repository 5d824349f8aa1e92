"""A LoRA adapter of the demo model, strong enough to change what it says."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

RANK = 8
_TARGETS = ("q_proj", "v_proj")


def write(model: nn.Module, folder: Path) -> None:
    """Writes an adapter with random weights, as PEFT does."""
    draw = torch.Generator().manual_seed(0)
    weights = {}
    for name, layer in _layers(model).items():
        down = 0.2 * torch.randn(RANK, layer.in_features, generator=draw)
        up = 0.2 * torch.randn(layer.out_features, RANK, generator=draw)
        weights |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": _TARGETS}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"bias": "none"}))


def merge(model: nn.Module, folder: Path) -> None:
    """Adds the adapter's products to the weights, in place."""
    weights = load_file(folder / "adapter_model.safetensors")
    for name, layer in _layers(model).items():
        layer.weight.data += weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]


def _layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {
        f"base_model.model.{name}": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(_TARGETS)
    }
