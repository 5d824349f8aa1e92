"""The models that benchmarks serve: the demo, and a randomly initialised one of about 100M."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import vllm
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cdserve.demo import HEAD_DIR, MODEL_DIR, Q_HEAD_DIR, REF_DIR, TUNED_DIR
from value_heads import HeadConfig, ValueHead

_ENGINE = {
    "dtype": "float32",
    "max_model_len": 2048,
    "enforce_eager": True,
    "block_size": 32,
}


def machine() -> str:
    """What the figures are from."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return f"{cpu}, {os.cpu_count()} cores; vLLM {vllm.__version__}, torch {torch.__version__}"


def demo_config() -> Path:
    """Settings that serve the demo model with its heads and members."""
    members = {"tuned": str(TUNED_DIR), "ref": str(REF_DIR)}
    return _settings(MODEL_DIR, HEAD_DIR, 512 << 20, q_head=str(Q_HEAD_DIR), members=members)


def member_config(name: str) -> Path:
    """Settings that serve one of the demo's members alone."""
    return _settings({"tuned": TUNED_DIR, "ref": REF_DIR}[name], None, 512 << 20)


def random_config() -> Path:
    """Settings that serve a random Llama of about 100M parameters with a random linear head."""
    folder = Path(tempfile.gettempdir()) / "cdserve-bench-100m"
    if not (folder / "head" / "model.safetensors").exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=11,
            num_attention_heads=12,
            num_key_value_heads=12,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=AutoTokenizer.from_pretrained(MODEL_DIR).eos_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(folder / "model")
        AutoTokenizer.from_pretrained(MODEL_DIR).save_pretrained(folder / "model")
        head = HeadConfig(
            architecture="linear",
            rewards=("reward",),
            hidden_size=768,
            shift=(0.0,),
            scale=(1.0,),
            base_model="random-100m",
        )
        ValueHead(head).save_pretrained(folder / "head")
    return _settings(folder / "model", folder / "head", 2 << 30)


def _settings(
    model: Path,
    head: Path | None,
    kv_cache_bytes: int,
    q_head: str | None = None,
    members: dict[str, str] | None = None,
) -> Path:
    path = Path(tempfile.mkdtemp(prefix="cdserve-bench-")) / "cdserve.yaml"
    settings: dict[str, Any] = {
        "model": str(model),
        "served_model_name": "bench",
        "rewards": {"length": {"kind": "length", "target": 64}},
        "members": members or {},
        "engine": {**_ENGINE, "kv_cache_memory_bytes": kv_cache_bytes},
    }
    if head is not None:
        settings["rewards"]["reward"] = {"kind": "value_head", "path": str(head), "q_head": q_head}
        settings["default_reward"] = "reward"
    path.write_text(yaml.safe_dump(settings))
    return path
