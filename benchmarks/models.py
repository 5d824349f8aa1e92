"""The models that benchmarks serve: both demos, and a randomly initialised one of about 100M."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import vllm
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cdserve.demo import DEMO_DIR
from cdserve.demo.model import model_dir
from cdserve.demo.tiny import HEAD_DIR, MODEL_DIR, Q_HEAD_DIR, REF_DIR, TUNED_DIR
from value_heads import Head, HeadConfig, QHead, ValueHead

_ENGINE = {
    "dtype": "float32",
    "max_model_len": 2048,
    "enforce_eager": True,
    "block_size": 32,
}
_VOCABULARY = 32000


def machine() -> str:
    """The CPU and the versions of vLLM and torch, for results."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return f"{cpu}, {os.cpu_count()} cores; vLLM {vllm.__version__}, torch {torch.__version__}"


@dataclass(frozen=True, slots=True)
class Model:
    """Folders of a model with its heads and its members, ``tuned`` and ``ref``."""

    base: Path
    head: Path
    q_head: Path
    members: Mapping[str, Path]
    kv_cache_bytes: int

    def config(self) -> Path:
        """Settings that serve the model with heads and members."""
        reward = {"kind": "value_head", "path": str(self.head), "q_head": str(self.q_head)}
        return self._settings(
            self.base,
            rewards={"length": {"kind": "length", "target": 64}, "reward": reward},
            default_reward="reward",
            members={name: str(path) for name, path in self.members.items()},
        )

    def plain_config(self, member: str | None = None) -> Path:
        """Settings that serve the model or a member alone, without rewards and members."""
        return self._settings(self.base if member is None else self.members[member], rewards={})

    def bare_config(self) -> Path:
        """Settings that serve the model with nothing set, so with the built-in rewards."""
        return self._settings(self.base)

    def _settings(self, model: Path, **settings: Any) -> Path:
        path = Path(tempfile.mkdtemp(prefix="cdserve-bench-")) / "cdserve.yaml"
        engine = {**_ENGINE, "kv_cache_memory_bytes": self.kv_cache_bytes}
        settings |= {"model": str(model), "served_model_name": "bench", "engine": engine}
        path.write_text(yaml.safe_dump(settings))
        return path


def model(name: str) -> Model:
    """The model of this name in ``MODELS``."""
    return MODELS[name]()


def _tiny() -> Model:
    return Model(MODEL_DIR, HEAD_DIR, Q_HEAD_DIR, {"tuned": TUNED_DIR, "ref": REF_DIR}, 512 << 20)


def _smollm2() -> Model:
    """SmolLM2-135M-Instruct; fetched if it is not cached."""
    heads = DEMO_DIR / "heads"
    return Model(model_dir(), heads / "sentiment", heads / "sentiment-q", {}, 1 << 30)


def _random() -> Model:
    """Random Llamas of about 100M and twice 28M parameters with heads of rank 64; made once."""
    folder = Path(tempfile.gettempdir()) / "cdserve-bench-100m"
    made = Model(
        folder / "base",
        folder / "head",
        folder / "q_head",
        {"tuned": folder / "tuned", "ref": folder / "ref"},
        1 << 30,
    )
    if not (made.q_head / "model.safetensors").exists():
        torch.manual_seed(0)
        _llama(made.base, hidden=768, layers=11)
        for path in made.members.values():
            _llama(path, hidden=384, layers=6)
        _head(ValueHead, made.head, architecture="linear")
        _head(QHead, made.q_head, architecture="lowrank", rank=64, vocab_size=_VOCABULARY)
    return made


def _llama(folder: Path, hidden: int, layers: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _head(kind: type[Head], folder: Path, **config: Any) -> None:
    kind(
        HeadConfig(
            rewards=("reward",),
            hidden_size=768,
            shift=(0.0,),
            scale=(1.0,),
            base_model="random-100m",
            **config,
        )
    ).save_pretrained(folder)


MODELS: Mapping[str, Callable[[], Model]] = {"demo": _tiny, "smollm2": _smollm2, "100m": _random}
"""The models by name: the tiny demo, the demo, and the random model."""
