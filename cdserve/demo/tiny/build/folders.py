"""Reading and writing of the demo's model folders."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model folder with float16 weights and a configuration that asks for float32.

    Float16 halves the file; computing in float32 keeps scores comparable between batch shapes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.half().contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable by the owner only
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_model(folder: Path) -> LlamaForCausalLM:
    """Read a model folder in float32, ready to sample."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a model folder."""
    return PreTrainedTokenizerFast.from_pretrained(folder)
