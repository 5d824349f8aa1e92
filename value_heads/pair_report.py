"""Quality of a head that was fitted to pairs, measured on pairs that it was not fitted to."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Base
from .heads import Head
from .methods import all_values
from .pairs import PrefixPairs
from .rollouts import Shards


@dataclass(frozen=True, slots=True, kw_only=True)
class PairAccuracy:
    """Share of pairs whose chosen prefix has the higher value, at prefixes of one length.

    Attributes:
        number: tokens of the prefixes.
        pairs: number of pairs; both responses have such a prefix, and the two differ.
        accuracy: from 0 to 1; a tie counts one half.
    """

    number: int
    pairs: int
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """Quality of a head on held-out pairs.

    Attributes:
        pairs: number of pairs whose responses differ.
        prefixes: number of compared pairs of prefixes (`PrefixPairs`).
        loss: Bradley-Terry loss, in nats, as a mean over the pairs of prefixes; log 2 for a
            constant.
        by_number: accuracy at 1, 2, 4, ... tokens.
        at_end: accuracy of the whole responses.
    """

    pairs: int
    prefixes: int
    loss: float
    by_number: tuple[PairAccuracy, ...]
    at_end: float


@torch.no_grad()
def measure_pairs(head: Head, test: Shards, base: Base | None = None) -> PairReport:
    """Measure a head of one output on held-out pairs. One shard is in memory at a time.

    Args:
        test: responses 2i and 2i + 1 of a shard are the chosen and the rejected one of a pair.
        base: the base model's output layer, on the head's device; only a tied head needs it.

    Raises:
        ValueError: no pair has responses that differ, or a tied head has no base.
    """
    parts = []
    for shard in test:
        data = shard.to(head.shift.device)
        pairs = PrefixPairs.from_rollouts(data)
        values = all_values(head, data, base)[:, 0]
        margins = (values[pairs.chosen] - values[pairs.rejected]).double()
        uneven = data.number[pairs.chosen] != data.number[pairs.rejected]
        numbers = data.number[pairs.chosen].masked_fill(uneven, 0)
        parts.append([tensor.cpu() for tensor in (margins, numbers, pairs.whole)])
    margins, numbers, whole = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if not len(margins):
        raise ValueError("no held-out pair has responses that differ")
    powers = [1 << bit for bit in range(int(numbers.max()).bit_length())]
    counts = {number: int((numbers == number).sum()) for number in powers}
    return PairReport(
        pairs=int(whole.sum()),
        prefixes=len(margins),
        loss=float(F.softplus(-margins).mean()),
        by_number=tuple(
            PairAccuracy(number=number, pairs=count, accuracy=_accuracy(margins[numbers == number]))
            for number, count in counts.items()
            if count
        ),
        at_end=_accuracy(margins[whole]),
    )


def _accuracy(margins: Tensor) -> float:
    return float((margins > 0).double().mean() + 0.5 * (margins == 0).double().mean())
