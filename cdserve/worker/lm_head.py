"""The output embedding of a vLLM model, for tied Q-heads."""

from typing import Any

import torch

_READABLE = (torch.float32, torch.bfloat16, torch.float16)


def lm_head(model: Any) -> torch.Tensor | None:
    """The weight ``[>= |V|, d]`` of a model's LM head.

    None if it cannot be used directly: it is quantised, or belongs to another pipeline stage.

    Args:
        model: a vLLM model of any architecture; its language model may be a submodule.
    """
    inner = getattr(model, "get_language_model", None)
    language = model if inner is None else inner()
    # Some tied architectures, such as Gemma 2, have only the input embedding.
    tied = getattr(getattr(language, "model", None), "embed_tokens", None)
    weight = getattr(getattr(language, "lm_head", tied), "weight", None)
    readable = isinstance(weight, torch.Tensor) and weight.dtype in _READABLE
    return weight if readable else None
