"""The output embedding of vLLM's models, which tied Q-heads read."""

from typing import Any

import torch

_READABLE = (torch.float32, torch.bfloat16, torch.float16)


def lm_head(model: Any) -> torch.Tensor | None:
    """The weight ``[>= |V|, d]`` that a model's logits are computed with.

    None where it cannot be read as it is: a quantised one, whose scales are kept apart, or one of
    another stage of the pipeline.

    Args:
        model: of any architecture of vLLM's; its language model may be a part of it.
    """
    inner = getattr(model, "get_language_model", None)
    language = model if inner is None else inner()
    # Some tied architectures, such as Gemma 2, have no attribute but the input embedding.
    tied = getattr(getattr(language, "model", None), "embed_tokens", None)
    weight = getattr(getattr(language, "lm_head", tied), "weight", None)
    readable = isinstance(weight, torch.Tensor) and weight.dtype in _READABLE
    return weight if readable else None
