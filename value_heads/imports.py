"""Import of value heads from other libraries' checkpoints."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .config import HeadConfig
from .files import hash_base
from .heads import ValueHead


@dataclass(frozen=True, slots=True)
class Layout:
    """Names under which a library stores a linear head on the last, normed hidden state."""

    library: str
    weight: str
    """Name of the tensor [G, d]."""
    bias: str
    """Name of the tensor [G]; it may be absent."""


LAYOUTS = (
    Layout("TRL", "v_head.summary.weight", "v_head.summary.bias"),
    Layout("OpenRLHF, critic", "value_head.weight", "value_head.bias"),
    Layout("sequence or token classification", "score.weight", "score.bias"),
)
_MEAN, _STD = "mean", "std"  # OpenRLHF's buffers if rewards are normalised


def import_head(
    folder: Path,
    *,
    base_model: str,
    rewards: Sequence[str] | None = None,
    base_dir: Path | None = None,
) -> ValueHead:
    """Return the linear value head that a checkpoint of another library holds.

    TRL's `AutoModelForCausalLMWithValueHead`, OpenRLHF's critics, and sequence- and
    token-classification models (including OpenRLHF's reward models) are recognised by the names of
    their tensors. Rewards that OpenRLHF normalises stay normalised. Only the head's tensors are
    read. The head reads the hidden states of the checkpoint's own backbone.

    Args:
        folder: a Transformers checkpoint in safetensors, whole or in shards.
        base_model: the backbone's name, for people.
        rewards: a name for each output; by default the checkpoint's labels, or "reward".
        base_dir: the backbone's folder, for its hash; None allows any base model.

    Raises:
        FileNotFoundError: the folder has no safetensors file; pickled weights are not read.
        ValueError: the folder has no head or several, the shapes are not [G, d] and [G], or the
            number of names is not that of the outputs.
    """
    names = dict(_names(folder))
    layouts = [layout for layout in LAYOUTS if layout.weight in names]
    if len(layouts) != 1:
        present = ", ".join(layout.weight for layout in layouts) or "none"
        accepted = ", ".join(f"{layout.weight} ({layout.library})" for layout in LAYOUTS)
        raise ValueError(f"{folder} must hold one of {accepted}; it holds {present}")
    (layout,) = layouts
    weight = _read(names, layout.weight).float()
    if weight.ndim != 2:
        raise ValueError(f"{layout.weight} must be [outputs, hidden size], got {[*weight.shape]}")
    outputs, hidden_size = weight.shape
    bias = _read(names, layout.bias).float() if layout.bias in names else torch.zeros(outputs)
    if bias.shape != (outputs,):
        raise ValueError(f"{layout.bias} must be [{outputs}], got {[*bias.shape]}")
    shift, scale = _normalisation(names)
    config = HeadConfig(
        architecture="linear",
        rewards=_rewards(folder, outputs, rewards),
        hidden_size=hidden_size,
        shift=(shift,) * outputs,
        scale=(scale,) * outputs,
        base_model=base_model,
        base_hash=None if base_dir is None else hash_base(base_dir),
    )
    head = ValueHead(config, f"Imported from {folder.name} ({layout.library}).\n")
    head.net.load_state_dict({"weight": weight, "bias": bias})
    return head.eval()


def _names(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield every tensor's name with the file that holds it."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no .safetensors file; convert pickled weights first, with "
            "save_pretrained(..., safe_serialization=True)"
        )
    for path in files:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
        yield from ((name, path) for name in names)


def _read(names: dict[str, Path], name: str) -> Tensor:
    with safe_open(names[name], framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def _normalisation(names: dict[str, Path]) -> tuple[float, float]:
    """Return shift and scale of (r - mean) / std."""
    if _MEAN not in names or _STD not in names:
        return 0.0, 1.0
    mean, std = (float(_read(names, name)) for name in (_MEAN, _STD))
    return -mean / std, 1 / std


def _rewards(folder: Path, outputs: int, given: Sequence[str] | None) -> tuple[str, ...]:
    if given is not None:
        if len(given) != outputs:
            raise ValueError(f"rewards must be {outputs} names, got {len(given)}")
        return tuple(given)
    path = folder / "config.json"
    labels = json.loads(path.read_text()).get("id2label") if path.is_file() else None
    if labels and len(labels) == outputs > 1:
        return tuple(labels[str(i)] for i in range(outputs))
    return ("reward",) if outputs == 1 else tuple(f"reward_{i}" for i in range(outputs))
