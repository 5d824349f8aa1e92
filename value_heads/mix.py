"""Mixing the next-token distributions of several models."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def mixed(
    base: Tensor, members: Mapping[str, Tensor], weights: Sequence[Mapping[str, float]]
) -> Tensor:
    """Return the logits sum_i w_i z_i of each row: softmax of it is prod_i p_i^w_i, normalised.

    Raw logits serve, as they differ from log p by a constant a row. Tokens that not all models
    have, which pad a vocabulary, get no probability. MOD (arXiv 2406.18853), equation 7; proxy
    tuning (arXiv 2401.08565).

    Args:
        base: the base model's logits, float [N, |V|].
        members: those of the other models, float [N, |V_i|], by name.
        weights: of each row, by name, the base's under "base"; absent ones are 0.
    """
    all_logits = {"base": base, **members}
    size = min(logits.shape[1] for logits in all_logits.values())
    total = torch.full_like(base, -torch.inf)
    total[:, :size] = 0.0
    for name, logits in all_logits.items():
        of_rows = [row.get(name, 0.0) for row in weights]
        if any(of_rows):
            weight = torch.tensor(of_rows, dtype=base.dtype, device=base.device)[:, None]
            part = weight * logits[:, :size]
            if not all(of_rows):  # 0 times an infinite logit is not a number
                part = part.masked_fill_(weight == 0, 0.0)
            total[:, :size] += part
    return total
