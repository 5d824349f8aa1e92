"""The served model with heads beside it: a subclass of its architecture, made on demand.

``cdserve.plugin.model:LlamaForCausalLM`` is vLLM's own ``LlamaForCausalLM`` with two methods
extended. A subclass, so that all that vLLM reads off the class (LoRA, quantisation, pipeline
parallelism, multi-modal interfaces) stays as it is.
"""

import importlib
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.registry import _VLLM_MODELS

from cdserve.plugin.rows import ROWS
from cdserve.plugin.scorer import ValueScorer
from cdserve.plugin.steerer import Steerer


class _Aligned:
    """Mixed in before the architecture's own class."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        heads = vllm_config.additional_config["cdserve"]
        device = vllm_config.device_config.device
        first = get_tensor_model_parallel_rank() == 0
        scores, steers = first and heads["values"], heads["q"]
        # Wrapped, so that torch does not take the heads for weights of the checkpoint.
        self._values = (ValueScorer(heads["values"], device) if scores else None,)
        self._steerer = (Steerer(heads["q"], device, reports=first) if steers else None,)

    def forward(
        self, input_ids: torch.Tensor | None, positions: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """The model's own forward pass; V of whole prompts is taken here, where asked for."""
        hidden = super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]
        last_stage = isinstance(hidden, torch.Tensor)  # of the pipeline; others hand on
        if self._values[0] is not None and last_stage and (rows := ROWS.every_position()):
            self._values[0].score_every(hidden, positions, _row_starts(), rows)
        return hidden

    def compute_logits(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The model's own logits, tilted where asked for; V is taken from the same states."""
        due, tilted = ROWS.take()
        if self._values[0] is not None:
            self._values[0].score_last(hidden_states, due)
        logits = super().compute_logits(hidden_states, *args, **kwargs)  # type: ignore[misc]
        if not tilted or self._steerer[0] is None or logits is None:
            return logits
        return self._steerer[0].tilt(logits, hidden_states, tilted, _lm_head(self))


def _lm_head(model: Any) -> torch.Tensor | None:
    weight: torch.Tensor | None = getattr(getattr(model, "lm_head", None), "weight", None)
    return weight


def _row_starts() -> list[int]:
    metadata = get_forward_context().attn_metadata
    if not metadata:  # a dummy run
        return []
    starts: list[int] = next(iter(metadata.values())).query_start_loc.tolist()
    return starts


def __getattr__(name: str) -> type:
    if name not in _VLLM_MODELS:
        raise AttributeError(name)
    module, cls = _VLLM_MODELS[name][:2]
    folder = module if module.startswith("vllm.") else f"vllm.model_executor.models.{module}"
    base = getattr(importlib.import_module(folder), cls)
    wrapped = type(cls, (_Aligned, base), {"__module__": __name__})
    globals()[name] = wrapped
    return wrapped
