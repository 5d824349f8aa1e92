"""Values of all linear and MLP heads in one pass over the hidden states: Triton kernels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import PackedHeads
from .sizes import cdiv, power_of_2
from .steer import PRECISION

_BLOCK_N = 16
"""Rows of a tile."""
_BLOCK_D = 128
"""Elements of a hidden state in one step of a product."""
_MAX_UNITS = 64
"""Hidden units of an MLP in one program, at most."""


@triton.jit
def _finish(
    raw,  # float32 [rows, outputs] of a tile, the second layer's sums without bias
    i,  # places of the tile's rows in values and total
    g,  # outputs of the tile
    mask,  # bool [rows], which of i exist
    bias,  # float32 [G]
    sigmoid,  # float32 [G], 1 where an output goes through a sigmoid
    shift,  # float32 [G], in units of the reward
    scale,  # float32 [G], in units of the reward
    weights,  # float32 [n, G] contiguous; unread unless WEIGHTED
    values,  # float32 [n, G] contiguous, written
    total,  # float32 [n], written if WEIGHTED
    outputs,  # G
    WEIGHTED: tl.constexpr,  # whether to store weighted sums
):
    """Store the values of a tile and their weighted sums."""
    some = g < outputs
    raw += tl.load(bias + g, mask=some, other=0.0)[None, :]
    bounded = tl.load(sigmoid + g, mask=some, other=0.0)[None, :] > 0
    raw = tl.where(bounded, tl.sigmoid(raw), raw)
    factor = tl.load(scale + g, mask=some, other=0.0)[None, :]
    value = tl.load(shift + g, mask=some, other=0.0)[None, :] + factor * raw
    both = mask[:, None] & some[None, :]
    at = i[:, None] * outputs + g[None, :]
    tl.store(values + at, value, mask=both)
    if WEIGHTED:
        w = tl.load(weights + at, mask=both, other=0.0)
        tl.store(total + i, tl.sum(tl.where(w == 0, 0.0, w * value), 1), mask=mask)


@triton.jit(do_not_specialize=["count"])
def _score_kernel(
    hidden,  # hidden states [N, d] of any float dtype, contiguous in d
    stride,  # from a state to the next, in elements
    rows,  # int64 [n], places of the rows in hidden
    first,  # float32 [U, d] contiguous, the first layer; the outputs' weights where LINEAR
    first_bias,  # float32 [U]
    gelu,  # float32 [U], 1 where a unit's activation is GELU; unread where LINEAR
    second,  # float32 [G, U] contiguous, the second layer; unread where LINEAR
    bias,  # float32 [G]
    sigmoid,  # float32 [G], 1 where an output goes through a sigmoid
    shift,  # float32 [G], in units of the reward
    scale,  # float32 [G], in units of the reward
    weights,  # float32 [n, G] contiguous; unread unless WEIGHTED
    values,  # float32 [n, G] contiguous, written unless SPLIT
    total,  # float32 [n], written if WEIGHTED and not SPLIT
    partials,  # float32 [unit blocks, n, G] contiguous, written if SPLIT
    count,  # n
    width,  # d
    units,  # U
    outputs,  # G
    LINEAR: tl.constexpr,  # whether all heads are linear; then U = G
    SPLIT: tl.constexpr,  # whether there are several blocks of units
    WEIGHTED: tl.constexpr,  # whether to store weighted sums
    PRECISION: tl.constexpr,  # precision of the first layer's products
    BLOCK_N: tl.constexpr,  # rows of a tile
    BLOCK_U: tl.constexpr,  # units of a block
    BLOCK_G: tl.constexpr,  # a power of 2, at least G
    BLOCK_D: tl.constexpr,  # elements of a state in one step of a product
):
    """Score a tile of rows with a block of units; grid (row tiles, unit blocks).

    With several blocks of units, store the block's part of each output in place of values.
    """
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = i < count
    row = tl.load(rows + i, mask=mask, other=0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    unit = n < units
    activations = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
    for begin in range(0, width, BLOCK_D):
        d = begin + tl.arange(0, BLOCK_D)
        near = d < width
        h = tl.load(
            hidden + row[:, None] * stride + d[None, :],
            mask=mask[:, None] & near[None, :],
            other=0.0,
        ).to(tl.float32)
        w = tl.load(
            first + n[None, :].to(tl.int64) * width + d[:, None],
            mask=near[:, None] & unit[None, :],
            other=0.0,
        )
        activations = tl.dot(h, w, activations, input_precision=PRECISION)
    activations += tl.load(first_bias + n, mask=unit, other=0.0)[None, :]
    g = tl.arange(0, BLOCK_G)
    if LINEAR:
        raw = activations
    else:
        curved = 0.5 * activations * (1.0 + tl.erf(activations * 0.7071067811865476))
        is_gelu = tl.load(gelu + n, mask=unit, other=0.0)[None, :] > 0
        activations = tl.where(is_gelu, curved, activations)
        out = tl.load(
            second + g[None, :] * units + n[:, None],
            mask=unit[:, None] & (g < outputs)[None, :],
            other=0.0,
        )
        # NaN times 0 is NaN: a broken head's would reach the values of the others.
        broken = (activations != activations) | (tl.abs(activations) == float("inf"))
        raw = tl.dot(tl.where(broken, 0.0, activations), out, input_precision="ieee")
        reached = tl.dot(broken.to(tl.float32), (out != 0).to(tl.float32), input_precision="ieee")
        raw = tl.where(reached > 0, float("nan"), raw)
    if SPLIT:
        at = partials + (tl.program_id(1) * count + i[:, None]) * outputs + g[None, :]
        tl.store(at, raw, mask=mask[:, None] & (g < outputs)[None, :])
    else:
        _finish(
            raw, i, g, mask, bias, sigmoid, shift, scale, weights, values, total, outputs, WEIGHTED
        )


@triton.jit(do_not_specialize=["count", "splits"])
def _sum_kernel(
    partials,  # float32 [splits, n, G] contiguous, of `_score_kernel`
    bias,  # float32 [G]
    sigmoid,  # float32 [G], 1 where an output goes through a sigmoid
    shift,  # float32 [G], in units of the reward
    scale,  # float32 [G], in units of the reward
    weights,  # float32 [n, G] contiguous; unread unless WEIGHTED
    values,  # float32 [n, G] contiguous, written
    total,  # float32 [n], written if WEIGHTED
    count,  # n
    outputs,  # G
    splits,  # blocks of units
    WEIGHTED: tl.constexpr,  # whether to store weighted sums
    BLOCK_N: tl.constexpr,  # rows of a tile
    BLOCK_G: tl.constexpr,  # a power of 2, at least G
):
    """Sum the parts of the unit blocks, in order, and store the values of a tile of rows."""
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    g = tl.arange(0, BLOCK_G)
    mask = i < count
    raw = tl.zeros([BLOCK_N, BLOCK_G], tl.float32)
    for split in range(splits):
        at = partials + (split * count + i[:, None]) * outputs + g[None, :]
        raw += tl.load(at, mask=mask[:, None] & (g < outputs)[None, :], other=0.0)
    _finish(raw, i, g, mask, bias, sigmoid, shift, scale, weights, values, total, outputs, WEIGHTED)


def score(
    hidden: Tensor, rows: Tensor, heads: PackedHeads, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Do as `reference.score`, for hidden states with contiguous rows.

    Linear heads take one launch. The units of an MLP are split among programs, and a second, small
    launch sums the parts, in a fixed order.
    """
    count, (outputs, units) = len(rows), heads.second.shape
    block_g = max(power_of_2(outputs), 16)
    block_u = block_g if heads.linear else min(max(power_of_2(units), 16), _MAX_UNITS)
    splits, tiles = cdiv(units, block_u), cdiv(count, _BLOCK_N)
    values = torch.empty(count, outputs, dtype=torch.float32, device=hidden.device)
    total = None if weights is None else torch.empty_like(values[:, 0])
    partials = values.new_empty(splits, count, outputs) if splits > 1 else values
    finishing = (
        heads.bias,
        heads.sigmoid,
        heads.shift,
        heads.scale,
        values if weights is None else weights,
        values,
        values if total is None else total,
    )
    _score_kernel[(tiles, splits)](
        hidden,
        hidden.stride(0),
        rows,
        heads.first,
        heads.first_bias,
        heads.gelu,
        heads.second,
        *finishing,
        partials,
        count,
        hidden.shape[1],
        units,
        outputs,
        LINEAR=heads.linear,
        SPLIT=splits > 1,
        WEIGHTED=weights is not None,
        PRECISION=PRECISION,
        BLOCK_N=_BLOCK_N,
        BLOCK_U=block_u,
        BLOCK_G=block_g,
        BLOCK_D=_BLOCK_D,
        num_warps=4 if heads.linear else 8,
        enable_fp_fusion=True,
    )
    if splits > 1:
        _sum_kernel[(tiles,)](
            partials,
            *finishing,
            count,
            outputs,
            splits,
            WEIGHTED=weights is not None,
            BLOCK_N=_BLOCK_N,
            BLOCK_G=block_g,
            enable_fp_fusion=True,
        )
    return values, total
