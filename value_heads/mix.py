"""Mixing the next-token distributions of several models."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def mixed(
    base: Tensor, members: Mapping[str, Tensor], weights: Sequence[Mapping[str, float]]
) -> Tensor:
    """Return logits sum_i w_i z_i of each row, whose softmax is prod_i p_i^w_i, normalised.

    Raw logits serve, as they differ from log p by a constant per row. Tokens that some model lacks,
    such as padding of a vocabulary, get no probability. Multi-objective decoding (arXiv
    2406.18853), equation 7; proxy tuning (arXiv 2401.08565).

    Args:
        base: logits of the base model, float [N, |V|].
        members: logits of the other models, float [N, |V_i|], by name.
        weights: weights of each row by model name, "base" for the base model; 0 where absent.
    """
    models = {"base": base, **members}
    rows = [[row.get(name, 0.0) for name in models] for row in weights]
    table = base.new_tensor(rows).view(len(weights), len(models))
    vocabulary = min(logits.shape[1] for logits in models.values())
    return weighted_sum(list(models.values()), table, vocabulary)


def weighted_sum(models: Sequence[Tensor], weights: Tensor, vocabulary: int) -> Tensor:
    """Return sum_i w_i z_i of each row, in the shape of the first model's logits.

    Args:
        models: logits of M models, float [N, |V_i|].
        weights: float [N, M]. A weight of 0 drops the model from the row, infinite logits included.
        vocabulary: tokens that all models have; the logits of later ones are -inf.
    """
    total = torch.full_like(models[0], -torch.inf)
    total[:, :vocabulary] = 0.0
    for logits, weight in zip(models, weights.T[:, :, None], strict=True):
        part = weight * logits[:, :vocabulary]
        total[:, :vocabulary] += torch.where(weight == 0, 0.0, part)
    return total
