"""Members: models that run in the base model's forward pass, each with its own KV cache."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.registry import _VLLM_MODELS
from vllm.transformers_utils.config import get_config

PREFIX = "members."

Weights = Iterable[tuple[str, Tensor]]


def architecture(name: str) -> type:
    """vLLM's class of an architecture.

    Raises:
        AttributeError: vLLM has no such architecture.
    """
    if name not in _VLLM_MODELS:
        raise AttributeError(f"vLLM has no architecture {name!r}")
    module, cls = _VLLM_MODELS[name][:2]
    folder = module if module.startswith("vllm.") else f"vllm.model_executor.models.{module}"
    model: type = getattr(importlib.import_module(folder), cls)
    return model


class Members(nn.Module):
    """The members, by name. Their hidden states are appended to the base model's.

    Args:
        vllm_config: configuration of the served model.
        paths: local folder or Hub id of each member.
    """

    def __init__(self, vllm_config: VllmConfig, paths: Mapping[str, str]) -> None:
        super().__init__()
        self._names = tuple(paths)
        self._widths: dict[str, int] = {}
        self._ran: tuple[str, ...] = ()
        for name, path in paths.items():
            config = get_config(path, vllm_config.model_config.trust_remote_code)
            cls = architecture(config.architectures[0])
            own = _config(vllm_config, name, config)
            # Compiled models read the current configuration, and key their code by it.
            with set_current_vllm_config(own), set_model_tag(f"{PREFIX}{name}"):
                self.add_module(name, cls(vllm_config=own, prefix=f"{PREFIX}{name}"))
            self._widths[name] = config.get_text_config().hidden_size

    @staticmethod
    def sources(paths: Mapping[str, str]) -> list[DefaultModelLoader.Source]:
        """Sources of the members' weights for vLLM's loader."""
        return [
            DefaultModelLoader.Source(path, revision=None, prefix=f"{PREFIX}{name}.")
            for name, path in paths.items()
        ]

    def load(self, weights: Weights, base: Callable[[Weights], set[str]]) -> set[str]:
        """Loads weights, the base model's by ``base``; returns the names loaded."""
        loaded: set[str] = set()
        for owner, group in groupby(weights, key=lambda item: _owner(item[0])):
            if owner is None:
                loaded |= base(group)
                continue
            start = len(f"{PREFIX}{owner}.")
            member: Any = getattr(self, owner)
            own = member.load_weights((name[start:], tensor) for name, tensor in group)
            loaded |= {f"{PREFIX}{owner}.{name}" for name in own}
        return loaded

    def forward(self, hidden: Tensor, wanted: set[str] | None, *inputs: Any) -> Tensor:
        """Runs members; returns the base model's hidden states followed by theirs.

        Args:
            hidden: hidden states of the base, ``[tokens, d]``.
            wanted: members to run; None for all, as vLLM's memory profiling needs.
            inputs: token ids and positions of the base's forward pass.
        """
        self._ran = tuple(n for n in self._names if wanted is None or n in wanted)
        if not self._ran:
            return hidden
        columns = [hidden.shape[1], *(self._widths[name] for name in self._ran)]
        states = hidden.new_empty(len(hidden), sum(columns))
        parts = torch.split(states, columns, dim=-1)
        # Copied before the next member runs: outputs of CUDA graphs share memory.
        parts[0].copy_(hidden)
        for name, part in zip(self._ran, parts[1:], strict=True):
            part.copy_(getattr(self, name)(*inputs))
        return states

    def logits(self, behind: Tensor) -> dict[str, Tensor]:
        """Logits of the members that ran, ``[N, |V|]``, in the model's dtype.

        Args:
            behind: hidden states that ``forward`` appended, ``[N, sum of widths]``.
        """
        widths = [self._widths[name] for name in self._ran]
        parts = zip(self._ran, torch.split(behind, widths, dim=-1), strict=True)
        return {name: getattr(self, name).compute_logits(own) for name, own in parts}


def _owner(name: str) -> str | None:
    return name.split(".")[1] if name.startswith(PREFIX) else None


def _config(vllm_config: VllmConfig, name: str, config: PreTrainedConfig) -> VllmConfig:
    """vLLM's configuration of a member.

    It includes the member's name, so that vLLM's compile cache has separate entries for members of
    equal configuration: compiled code refers to the layers, and so the KV cache, of one model.

    Args:
        vllm_config: configuration of the served model.
        config: configuration of the member's model.
    """
    own: VllmConfig = vllm_config.with_hf_config(config, architectures=config.architectures)
    own.additional_config = {**own.additional_config, "member": name}
    return own
