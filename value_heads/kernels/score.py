"""Values of all linear and MLP heads in one pass over the hidden states: Triton kernels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import PackedHeads
from .sizes import cdiv, power_of_2
from .steer import PRECISION

_BLOCK_N = 16
_BLOCK_D = 128
_MOST_UNITS = 64


@triton.jit
def _finish(
    raw,
    i,
    g,
    mask,
    bias,
    sigmoid,
    shift,
    scale,
    weights,
    values,
    total,
    outputs,
    WEIGHTED: tl.constexpr,
):
    """Store values and their weighted sum, of what the second layer gives, raw [rows, outputs]."""
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
    hidden,
    stride,
    rows,
    first,
    first_bias,
    gelu,
    second,
    bias,
    sigmoid,
    shift,
    scale,
    weights,
    values,
    total,
    partials,
    count,
    width,
    units,
    outputs,
    LINEAR: tl.constexpr,
    SPLIT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile of rows and a block of units: their part of each output, or where all fit, values."""
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = i < count
    row = tl.load(rows + i, mask=mask, other=0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    unit = n < units
    made = tl.zeros([BLOCK_N, BLOCK_U], tl.float32)
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
        made = tl.dot(h, w, made, input_precision=PRECISION)
    made += tl.load(first_bias + n, mask=unit, other=0.0)[None, :]
    g = tl.arange(0, BLOCK_G)
    if LINEAR:
        raw = made
    else:
        curved = 0.5 * made * (1.0 + tl.erf(made * 0.7071067811865476))
        is_gelu = tl.load(gelu + n, mask=unit, other=0.0)[None, :] > 0
        made = tl.where(is_gelu, curved, made)
        out = tl.load(
            second + g[None, :] * units + n[:, None],
            mask=unit[:, None] & (g < outputs)[None, :],
            other=0.0,
        )
        # NaN times 0 is NaN, and would take a broken head's into the values of the others.
        broken = (made != made) | (tl.abs(made) == float("inf"))
        raw = tl.dot(tl.where(broken, 0.0, made), out, input_precision="ieee")
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
    partials,
    bias,
    sigmoid,
    shift,
    scale,
    weights,
    values,
    total,
    count,
    outputs,
    splits,
    WEIGHTED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """A tile of rows: the parts [splits, n, G] of the units' blocks, summed in order."""
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
    """As `reference.score`, of hidden states with contiguous rows.

    One launch where the heads are linear; an MLP's units are split among programs, and a second,
    small launch sums the parts, in a fixed order.
    """
    count, (outputs, units) = len(rows), heads.second.shape
    block_g = max(power_of_2(outputs), 16)
    block_u = block_g if heads.linear else min(max(power_of_2(units), 16), _MOST_UNITS)
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
