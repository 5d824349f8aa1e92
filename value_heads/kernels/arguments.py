"""What the operations of the hot path take and give, on any device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from value_heads.heads import ValueHead

ROW_TILES = (16, 32, 64)
"""Rows of a tile of a tilt, which has a variant for each: the least that takes all rows, or 64."""


MIXES, TILTED = 1, 2
"""Bits of a row's kind: it is mixed, it is tilted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMixture:
    """sum_i w_i z_i over the base's logits and M members', of n rows.

    Attributes:
        members: M tensors [m, |V_i|], float32, bfloat16 or float16, rows contiguous. They are of
            the first m <= n rows; the rows from m on must not be of a kind that mixes.
        weights: float32 [n, 1 + M], of any sign; column 0 is the base's. A member is not read in
            rows where its weight is 0.
        vocabulary: tokens that all models have; those beyond get no probability.
    """

    members: tuple[Tensor, ...]
    weights: Tensor
    vocabulary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTilt:
    """sum_g u_g B_g^T over the outputs of one or more low-rank Q-heads, of n rows.

    Attributes:
        factors: of each head u times w / beta, float32 [n, G, r].
        tokens: of each head B, [G, |V_h|, r], float32, bfloat16 or float16, contiguous in r. Tokens
            that a head has no row of are tilted by 0.
        top_k: int64 [n], k of each row, from 1 to |V_h|; in a row that is not tilted, anything.
            The tilt counts about its mean over the k most likely tokens there, and 0 elsewhere,
            as `centred_on_top_k`. None for all tokens.
        most: the largest k, which the host must know without waiting for the device.
    """

    factors: tuple[Tensor, ...]
    tokens: tuple[Tensor, ...]
    top_k: Tensor | None = None
    most: int = 0

    @property
    def vocabulary(self) -> int:
        """Tokens that some head has values of."""
        return max(tokens.shape[1] for tokens in self.tokens)


class Statistics(NamedTuple):
    """What steering did to the next-token distribution of each row, float32 [n] each, in nats.

    All of softmax(. / T); a row at T = 0 is taken at 1, as `value_heads.kl` does. NaN where a logit
    is NaN or +inf, or where all are -inf. Where a token that had no probability gets some the KL is
    infinite; a number above 1e20 stands for it where the token's probability is not tiny.
    """

    log_sum_exp_before: Tensor
    log_sum_exp_after: Tensor
    kl: Tensor
    """KL(after || before), at least 0."""
    entropy: Tensor
    """Of the distribution after."""


MARGIN = 1.0 - 1e-5
"""Share of a budget that may be spent: what is rounded later must not pass the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathKL:
    """KL along the paths of S requests, each in a slot, on the device.

    The step that the request is at is kept apart: a prefix that is met again, as after preemption,
    replaces its step.

    Attributes:
        spent: float64 [S], nats of the steps before the one at `at`.
        step: float64 [S], nats of the step at `at`; 0 if it was left unsteered.
        unsteered: int32 [S], steps before the one at `at` that a budget left unsteered.
        step_unsteered: int32 [S], 1 if the step at `at` is one, else 0.
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
        """Return paths on which no step has been taken."""
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

    V = shift + scale output(second act(first h) + bias), where act is GELU in the units of an MLP
    and nothing in the one unit of each linear output.

    Attributes:
        first: [U, d].
        first_bias: [U].
        gelu: [U], 1 where a unit's activation is GELU.
        second: [G, U]; 0 between an output and another head's units.
        bias, shift, scale: [G].
        sigmoid: [G], 1 where an output is a sigmoid's.
        hidden_units: of all MLPs, on the host.
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
        """Whether all are linear: the second layer is the identity then."""
        return not self.hidden_units

    @staticmethod
    def packs(head: ValueHead) -> bool:
        """Whether the head is one of these."""
        return head.config.architecture in ("linear", "mlp")

    @classmethod
    def of(cls, heads: Sequence[ValueHead]) -> Self:
        """Pack heads, their outputs in this order.

        Raises:
            ValueError: there is none, or one is neither linear nor an MLP.
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
    if not PackedHeads.packs(head):
        raise ValueError(
            f"a packed head must be linear or an MLP, got {head.config.architecture!r}"
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
