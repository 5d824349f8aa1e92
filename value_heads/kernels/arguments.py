"""Arguments and results of the operations of the hot path, on any device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from value_heads.heads import ValueHead

ROW_TILES = (16, 32, 64)
"""Rows of a tilt's tile, one variant each: the smallest that holds all rows, at most 64."""
MIXES, TILTED = 1, 2
"""Bits of a row's kind: mixed, tilted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMixture:
    """Mixture sum_i w_i z_i of the logits of a base and M members, for n rows of a batch.

    Attributes:
        members: logits of the first m <= n rows, M tensors [m, |V_i|], float32, bfloat16 or
            float16, rows contiguous. Rows from m on must not be of a kind that mixes.
        weights: float32 [n, 1 + M], of any sign; column 0 is the base's. A member is not read in
            rows where its weight is 0.
        vocabulary: tokens that all models have; later tokens get no probability.
    """

    members: tuple[Tensor, ...]
    weights: Tensor
    vocabulary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTilt:
    """Tilt sum_g u_g B_g^T over the outputs of one or more low-rank Q-heads, for n rows of a batch.

    Attributes:
        factors: per head, u times w / beta, float32 [n, G, r].
        tokens: per head, B [G, |V_h|, r], float32, bfloat16 or float16, contiguous in r. Tokens
            beyond |V_h| are tilted by 0.
        top_k: int64 [n], k of each row, from 1 to |V_h|; unread where a row is not tilted. The
            tilt is centred on its mean over the row's k most likely tokens, and 0 elsewhere, as
            `centred_on_top_k` does. None for all tokens.
        most: the largest k, known to the host without waiting for the device.
    """

    factors: tuple[Tensor, ...]
    tokens: tuple[Tensor, ...]
    top_k: Tensor | None = None
    most: int = 0

    @property
    def vocabulary(self) -> int:
        """Tokens that at least one head has values for."""
        return max(tokens.shape[1] for tokens in self.tokens)


class Statistics(NamedTuple):
    """Effect of steering on the next-token distribution of each row, float32 [n] each, in nats.

    Distributions are softmax(. / T); T = 0 counts as 1, as in `value_heads.kl`. NaN where a logit
    is NaN or +inf, or where all are -inf. The KL is infinite where a token without probability
    gets some; a number above 1e20 stands for it, unless the token's probability is tiny.
    """

    log_sum_exp_before: Tensor
    log_sum_exp_after: Tensor
    kl: Tensor
    """KL(after || before), at least 0."""
    entropy: Tensor
    """Entropy of the distribution after."""


MARGIN = 1.0 - 1e-5
"""Share of a budget that may be spent, so that later rounding does not exceed the budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathKL:
    """KL along the paths of S requests, one slot each, on the device.

    The last step is kept apart: when the same prefix comes again, as after preemption, the new
    step replaces it.

    Attributes:
        spent: float64 [S], nats of the steps before the last.
        step: float64 [S], nats of the last step; 0 if it was left unsteered.
        unsteered: int32 [S], steps before the last that a budget left unsteered.
        step_unsteered: int32 [S], 1 if the last step was left unsteered, else 0.
        at: int64 [S], tokens of the prefix that the last step's logits were conditioned on; -1
            before the first step.
    """

    spent: Tensor
    step: Tensor
    unsteered: Tensor
    step_unsteered: Tensor
    at: Tensor

    @classmethod
    def zeros(cls, slots: int, device: torch.device) -> Self:
        """Return paths without a step."""
        return cls(
            spent=torch.zeros(slots, dtype=torch.float64, device=device),
            step=torch.zeros(slots, dtype=torch.float64, device=device),
            unsteered=torch.zeros(slots, dtype=torch.int32, device=device),
            step_unsteered=torch.zeros(slots, dtype=torch.int32, device=device),
            at=torch.full((slots,), -1, device=device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedHeads:
    """Linear and MLP value heads as one network of two layers, all in float32.

    V = shift + scale output(second act(first h + first_bias) + bias), where act is GELU for the
    units of an MLP and the identity for the single unit of a linear output.

    Attributes:
        first, first_bias: weights [U, d] and bias [U] of the first layer.
        gelu: [U], 1 where a unit's activation is GELU.
        second, bias: weights [G, U] and bias [G] of the second layer; weights are 0 between an
            output and another head's units.
        sigmoid: [G], 1 where an output goes through a sigmoid.
        shift, scale: [G], in units of the reward.
        hidden_units: hidden units of all MLPs, a number on the host.
    """

    first: Tensor
    first_bias: Tensor
    gelu: Tensor
    second: Tensor
    bias: Tensor
    sigmoid: Tensor
    shift: Tensor
    scale: Tensor
    hidden_units: int

    @property
    def linear(self) -> bool:
        """Whether all heads are linear, so that the second layer is the identity."""
        return not self.hidden_units

    @staticmethod
    def can_pack(head: ValueHead) -> bool:
        """Return whether the head can be packed: a linear head or an MLP of the state alone."""
        config = head.config
        return config.architecture in ("linear", "mlp") and config.position_limit is None

    @classmethod
    def from_heads(cls, heads: Sequence[ValueHead]) -> Self:
        """Pack heads; their outputs keep this order.

        Raises:
            ValueError: there is no head, or one cannot be packed.
        """
        layers = [_layers(head) for head in heads]
        if not layers:
            raise ValueError("there must be a head to pack")
        sigmoid = [
            torch.full_like(head.shift, float(head.config.output == "sigmoid")) for head in heads
        ]
        return cls(
            first=torch.cat([layer.first for layer in layers]).contiguous(),
            first_bias=torch.cat([layer.first_bias for layer in layers]),
            gelu=torch.cat([layer.gelu for layer in layers]),
            second=torch.block_diag(*(layer.second for layer in layers)),  # type: ignore[no-untyped-call]
            bias=torch.cat([layer.bias for layer in layers]),
            sigmoid=torch.cat(sigmoid),
            shift=torch.cat([head.shift for head in heads]),
            scale=torch.cat([head.scale for head in heads]),
            hidden_units=sum(head.config.mlp_width or 0 for head in heads),
        )


class _Layers(NamedTuple):
    first: Tensor
    first_bias: Tensor
    gelu: Tensor
    second: Tensor
    bias: Tensor


def _layers(head: ValueHead) -> _Layers:
    if not PackedHeads.can_pack(head):
        raise ValueError(
            "a packed head must be linear or an MLP and read the state alone, got "
            f"{head.config.architecture!r}, position_limit {head.config.position_limit}"
        )
    if isinstance(head.net, nn.Linear):
        weight, bias = head.net.weight.detach(), head.net.bias.detach()
        none = torch.zeros_like(bias)
        return _Layers(weight, none, none, torch.ones_like(bias).diag(), bias)
    assert isinstance(head.net, nn.Sequential)
    first, _, second = head.net
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    return _Layers(
        first.weight.detach(),
        first.bias.detach(),
        torch.ones_like(first.bias.detach()),
        second.weight.detach(),
        second.bias.detach(),
    )
