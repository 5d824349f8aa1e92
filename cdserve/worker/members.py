"""Members: models that run beside the base, in the same forward pass, with their own KV cache."""

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
    """vLLM's own class of an architecture.

    Raises:
        AttributeError: vLLM has none of that name.
    """
    if name not in _VLLM_MODELS:
        raise AttributeError(name)
    module, cls = _VLLM_MODELS[name][:2]
    folder = module if module.startswith("vllm.") else f"vllm.model_executor.models.{module}"
    found: type = getattr(importlib.import_module(folder), cls)
    return found


class Members(nn.Module):
    """The members, by name. Hidden states of those that ran ride behind the base's own.

    Args:
        vllm_config: the served model's.
        paths: local or Hub paths.
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
            # What compiled models take for theirs, and keep their code by.
            with set_current_vllm_config(own), set_model_tag(f"{PREFIX}{name}"):
                self.add_module(name, cls(vllm_config=own, prefix=f"{PREFIX}{name}"))
            self._widths[name] = config.get_text_config().hidden_size

    @staticmethod
    def sources(paths: Mapping[str, str]) -> list[DefaultModelLoader.Source]:
        """Where vLLM's loader finds the members' weights beside the base's."""
        return [
            DefaultModelLoader.Source(path, revision=None, prefix=f"{PREFIX}{name}.")
            for name, path in paths.items()
        ]

    def load(self, weights: Weights, base: Callable[[Weights], set[str]]) -> set[str]:
        """Loads what the loader reads, the base's with ``base``; gives the names loaded."""
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
        """The base's hidden states followed by those of the wanted members.

        Args:
            hidden: ``[tokens, d]``.
            wanted: who runs; None for all, as vLLM's runs that measure memory need.
            inputs: token ids and positions, as the base's own forward pass has them.
        """
        self._ran = tuple(n for n in self._names if wanted is None or n in wanted)
        if not self._ran:
            return hidden
        columns = [hidden.shape[1], *(self._widths[name] for name in self._ran)]
        states = hidden.new_empty(len(hidden), sum(columns))
        parts = torch.split(states, columns, dim=-1)
        # Each is kept before the next runs: outputs of CUDA graphs share memory.
        parts[0].copy_(hidden)
        for name, part in zip(self._ran, parts[1:], strict=True):
            part.copy_(getattr(self, name)(*inputs))
        return states

    def logits(self, behind: Tensor) -> dict[str, Tensor]:
        """Logits of the members that ran, ``[N, |V|]``, in the model's dtype.

        Args:
            behind: what ``forward`` put behind the base's hidden states, ``[N, sum of widths]``.
        """
        widths = [self._widths[name] for name in self._ran]
        parts = zip(self._ran, torch.split(behind, widths, dim=-1), strict=True)
        return {name: getattr(self, name).compute_logits(own) for name, own in parts}


def _owner(name: str) -> str | None:
    return name.split(".")[1] if name.startswith(PREFIX) else None


def _config(vllm_config: VllmConfig, name: str, config: PreTrainedConfig) -> VllmConfig:
    """What vLLM is told of a member.

    Its name is part of it, and so of the key under which vLLM keeps what it compiled for it. The
    code of one model names the layers of that model, whose KV cache it uses.

    Args:
        vllm_config: the served model's.
        config: the member's model.
    """
    own: VllmConfig = vllm_config.with_hf_config(config, architectures=config.architectures)
    own.additional_config = {**own.additional_config, "member": name}
    return own
