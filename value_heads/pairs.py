"""Pairs of a chosen and a rejected response, compared prefix by prefix."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .rollouts import Rollouts


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixPairs:
    """n pairs of prefixes to compare, of a chosen and a rejected response to the same prompt.

    Both prefixes of a pair have the same number of tokens, from 1 to the length of the shorter
    response. If the responses differ in length, the two whole responses are one more pair. Prefixes
    with equal tokens are left out, since their values are equal.

    Attributes:
        chosen, rejected: int64 [n], places in `Rollouts.tokens` of the prefixes' last tokens.
        whole: bool [n], whether the prefixes are the whole responses.
    """

    chosen: Tensor
    rejected: Tensor
    whole: Tensor

    @classmethod
    def from_rollouts(cls, data: Rollouts) -> "PrefixPairs":
        """Pair the prefixes of responses 2i, the chosen ones, and 2i + 1, the rejected ones.

        Raises:
            ValueError: the number of responses is odd.
        """
        if len(data.lengths) % 2:
            raise ValueError(
                f"pairs must have an even number of responses, got {len(data.lengths)}"
            )
        chosen_length, rejected_length = data.lengths[::2], data.lengths[1::2]
        tokens = data.pad(data.tokens)
        width = torch.arange(tokens.shape[1], device=tokens.device)
        common = width < torch.minimum(chosen_length, rejected_length)[:, None]
        differ = ((tokens[::2] != tokens[1::2]) & common).cumsum(1) > 0
        pair, place = (differ & common).nonzero(as_tuple=True)
        last = data.last
        first = last - data.lengths + 1
        uneven = (chosen_length != rejected_length).nonzero()[:, 0]
        whole = (place + 1 == chosen_length[pair]) & (place + 1 == rejected_length[pair])
        return cls(
            chosen=torch.cat([first[2 * pair] + place, last[2 * uneven]]),
            rejected=torch.cat([first[2 * pair + 1] + place, last[2 * uneven + 1]]),
            whole=torch.cat([whole, torch.ones_like(uneven, dtype=torch.bool)]),
        )

    def __len__(self) -> int:
        return len(self.chosen)
