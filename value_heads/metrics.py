"""How well values predict the rewards that followed."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def correlation(values: Tensor, rewards: Tensor) -> float:
    """Return Pearson's correlation of two vectors [N]; NaN where one of them is constant.

    Raises:
        ValueError: the shapes differ, or there are fewer than two entries.
    """
    if values.shape != rewards.shape or values.ndim != 1 or len(values) < 2:
        raise ValueError(
            "values and rewards must be vectors of the same length, at least 2, got "
            f"{list(values.shape)} and {list(rewards.shape)}"
        )
    centred = torch.stack([values, rewards]).double()
    centred = centred - centred.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    return float((centred[0] @ centred[1]) / (norms[0] * norms[1]))


def correlation_by_bucket(
    values: Tensor, rewards: Tensor, places: Tensor, edges: Sequence[float]
) -> list[float | None]:
    """Return the correlation within each bucket of places; None where fewer than two fall in it.

    Args:
        values, rewards, places: float [N]; a place is a token's index or its fraction of the text.
        edges: rising numbers; bucket i holds edges[i] <= place < edges[i + 1].
    """
    return [
        correlation(values[inside], rewards[inside]) if inside.sum() > 1 else None
        for low, high in pairwise(edges)
        for inside in [(places >= low) & (places < high)]
    ]
