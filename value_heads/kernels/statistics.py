"""The statistics of steering by online reduction: Triton functions that the kernels share.

A program reduces its chunk of a row's vocabulary to six numbers, another joins the chunks. With
x and y the logits before and after, divided by T, these are max x, sum e^(x - max x), max y,
sum e^(y - max y) and, with the last one's exponentials e, the sums of e ((y - max y) - (x - max x))
and of e (y - max y). Both are of differences from the maxima: sums of e y would lose everything
that is smaller than a rounding error of the largest logit, as after a strong tilt.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Statistics
from .sizes import cdiv, power_of_2

NUMBERS = 6
_BLOCK = 1024
_LEAST_JOINED = 1024
"""Places for chunks in the program that joins them: one variant, as seldom are there more."""
_LOWEST = tl.constexpr(-1e30)
"""In place of -inf, as e times it is 0 where e is."""


@triton.jit
def finite(top):
    """Return a maximum as a number to subtract: 0 in the place of -inf, that of no token."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def accumulate(x, y, top_x, sum_x, top_y, sum_y, shift, moment):
    """Add a tile x, y [rows, tokens], -inf beyond the vocabulary, to running numbers [rows]."""
    new_x = tl.maximum(top_x, tl.max(x, 1))
    new_y = tl.maximum(top_y, tl.max(y, 1))
    finite_x = finite(new_x)
    finite_y = finite(new_y)
    sum_x = sum_x * tl.exp(top_x - finite_x) + tl.sum(tl.exp(x - finite_x[:, None]), 1)
    below_x = tl.where(x == float("-inf"), _LOWEST, x) - finite_x[:, None]
    below_y = y - finite_y[:, None]
    e = tl.exp(below_y)
    none = y == float("-inf")
    # The sums so far are of differences from the maxima so far, which may have risen.
    scale = tl.exp(top_y - finite_y)
    risen_y = finite(top_y) - finite_y
    risen_x = finite(top_x) - finite_x
    shift = (shift + sum_y * (risen_y - risen_x)) * scale
    shift += tl.sum(tl.where(none, 0.0, e * (below_y - below_x)), 1)
    moment = (moment + sum_y * risen_y) * scale
    moment += tl.sum(tl.where(none, 0.0, e * below_y), 1)
    sum_y = sum_y * scale + tl.sum(e, 1)
    return new_x, sum_x, new_y, sum_y, shift, moment


@triton.jit
def start(ROWS: tl.constexpr):
    """Return the running numbers of nothing yet."""
    none = tl.full([ROWS], float("-inf"), tl.float32)
    zero = tl.zeros([ROWS], tl.float32)
    return none, zero, none, zero, zero, zero


@triton.jit
def keep(partials, i, chunk, chunks, size, mask, top_x, sum_x, top_y, sum_y, shift, moment):
    """Store the numbers of rows i of a chunk in partials [6, n, chunks]; size = n chunks."""
    at = partials + i * chunks + chunk
    tl.store(at, top_x, mask=mask)
    tl.store(at + size, sum_x, mask=mask)
    tl.store(at + 2 * size, top_y, mask=mask)
    tl.store(at + 3 * size, sum_y, mask=mask)
    tl.store(at + 4 * size, shift, mask=mask)
    tl.store(at + 5 * size, moment, mask=mask)


@triton.jit
def divisor(temperature, i, mask):
    """Return T of rows i, 1 where it is 0."""
    t = tl.load(temperature + i, mask=mask, other=1.0)
    return tl.where(t > 0, t, 1.0)


@triton.jit
def _joined(top, total):
    base = finite(tl.max(top, 0))
    scale = tl.exp(top - base)
    return base, scale, tl.sum(total * scale, 0)


@triton.jit(do_not_specialize=["count", "chunks"])
def _join_kernel(partials, found, count, chunks, BLOCK: tl.constexpr):
    """One row: partials [6, n, chunks] -> found [4, n]."""
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    mask = c < chunks
    size = count * chunks
    at = partials + row * chunks + c
    top_x = tl.load(at, mask=mask, other=float("-inf"))
    sum_x = tl.load(at + size, mask=mask, other=0.0)
    top_y = tl.load(at + 2 * size, mask=mask, other=float("-inf"))
    sum_y = tl.load(at + 3 * size, mask=mask, other=0.0)
    shift = tl.load(at + 4 * size, mask=mask, other=0.0)
    moment = tl.load(at + 5 * size, mask=mask, other=0.0)
    base_x, _, all_x = _joined(top_x, sum_x)
    base_y, scale, all_y = _joined(top_y, sum_y)
    under_y = finite(top_y) - base_y
    under_x = finite(top_x) - base_x
    shift = tl.sum((shift + sum_y * (under_y - under_x)) * scale, 0) / all_y
    moment = tl.sum((moment + sum_y * under_y) * scale, 0) / all_y
    kl = shift - (tl.log(all_y) - tl.log(all_x))
    tl.store(found + row, base_x + tl.log(all_x))
    tl.store(found + count + row, base_y + tl.log(all_y))
    tl.store(found + 2 * count + row, tl.where(kl < 0, 0.0, kl))
    tl.store(found + 3 * count + row, tl.log(all_y) - moment)


@triton.jit(
    do_not_specialize=["before_stride", "after_stride", "count", "chunks"],
    do_not_specialize_on_alignment=["rows"],
)
def _measure_kernel(
    before,
    after,
    before_stride,
    after_stride,
    rows,
    vocabulary,
    temperature,
    partials,
    count,
    chunks,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of one row; `before` [n, |V|] is in order, `after` is read at `rows`."""
    i = tl.program_id(0) + tl.arange(0, 1)
    chunk = tl.program_id(1)
    mask = i < count
    v = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = mask[:, None] & (v < vocabulary)[None, :]
    row = tl.load(rows + i, mask=mask, other=0).to(tl.int64)
    t = divisor(temperature, i, mask)[:, None]
    x_at = before + i.to(tl.int64)[:, None] * (before_stride * UNIT) + v[None, :]
    y_at = after + row[:, None] * (after_stride * UNIT) + v[None, :]
    x = tl.load(x_at, mask=inside, other=float("-inf")) / t
    y = tl.load(y_at, mask=inside, other=float("-inf")) / t
    a, b, c, d, e, f = start(1)
    a, b, c, d, e, f = accumulate(x, y, a, b, c, d, e, f)
    keep(partials, i, chunk, chunks, count * chunks, mask, a, b, c, d, e, f)


def unit_of(*logits: Tensor) -> int:
    """Return in what units kernels are given strides of [n, |V|]: 16 where it divides all, or 1.

    In units of 16 wide loads are possible. Triton would choose by each stride itself, which of a
    padded |V| is another one in a batch of one row.
    """
    return 16 if all(z.shape[1] % 16 == z.stride(0) % 16 == 0 for z in logits) else 1


def tempered(temperature: Tensor | None, count: int, device: torch.device) -> Tensor:
    """Return T of n rows, float32 [n]; a kernel of its own for T = 1 would have to be compiled."""
    return torch.ones(count, device=device) if temperature is None else temperature


def room(count: int, chunks: int, device: torch.device) -> Tensor:
    """Return memory for the numbers of n rows in chunks, float32 [6, n, chunks]."""
    return torch.empty(NUMBERS, count, chunks, dtype=torch.float32, device=device)


def joined(partials: Tensor) -> Statistics:
    """Join the chunks of each row; `partials` as `room` gives it, all written."""
    _, count, chunks = partials.shape
    found = torch.empty(4, count, dtype=torch.float32, device=partials.device)
    block = max(power_of_2(chunks), _LEAST_JOINED)
    _join_kernel[(count,)](partials, found, count, chunks, BLOCK=block, enable_fp_fusion=True)
    return Statistics(*found)


def measure(before: Tensor, after: Tensor, rows: Tensor, temperature: Tensor | None) -> Statistics:
    """Return what changed between float32 [n, |V|] and the rows [n] of float32 [N, |V|]."""
    count, vocabulary = before.shape
    chunks = cdiv(vocabulary, _BLOCK)
    partials = room(count, chunks, before.device)
    unit = unit_of(before, after)
    _measure_kernel[(count, chunks)](
        before,
        after,
        before.stride(0) // unit,
        after.stride(0) // unit,
        rows,
        vocabulary,
        tempered(temperature, count, before.device),
        partials,
        count,
        chunks,
        UNIT=unit,
        BLOCK=_BLOCK,
        enable_fp_fusion=True,
    )
    return joined(partials)
