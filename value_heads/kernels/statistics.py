"""Statistics of steering by online reduction: Triton functions that the kernels share.

A program reduces its chunk of a row's vocabulary to six numbers, and another program joins the
chunks. With x and y the logits before and after, divided by T, and e = e^(y - max y), the numbers
are:

    top_x   max x                top_y   max y
    sum_x   sum e^(x - max x)    sum_y   sum e
    shift   sum e ((y - max y) - (x - max x))
    moment  sum e (y - max y)

The last two use differences from the maxima: after a strong tilt, sums of e y would lose everything
that is smaller than a rounding error of the largest logit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import Statistics
from .sizes import cdiv, power_of_2

NUMBERS = 6
"""Numbers of a row and chunk."""
_BLOCK = 1024
"""Tokens of a chunk in `measure`."""
_MIN_JOINED = 1024
"""Chunks that the joining program has room for, at least: there are seldom more, so one variant."""
_LOWEST = tl.constexpr(-1e30)
"""Stands for -inf, since e times it is 0 where e is 0."""


@triton.jit
def finite(top):
    """Return a maximum as a number to subtract: 0 for -inf, the maximum of no token."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def accumulate(x, y, top_x, sum_x, top_y, sum_y, shift, moment):
    """Add a tile x, y, float32 [rows, tokens], to the running numbers, float32 [rows] each.

    x and y are -inf beyond the vocabulary.
    """
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
    """Return the running numbers of no token, float32 [ROWS] each."""
    none = tl.full([ROWS], float("-inf"), tl.float32)
    zero = tl.zeros([ROWS], tl.float32)
    return none, zero, none, zero, zero, zero


@triton.jit
def keep(
    partials,  # float32 [6, n, chunks] contiguous, written
    i,  # places [rows] in n
    chunk,  # place of the chunk
    chunks,  # chunks of the vocabulary
    size,  # n chunks
    mask,  # bool [rows], which of i exist
    top_x,  # float32 [rows], as are the other five numbers
    sum_x,
    top_y,
    sum_y,
    shift,
    moment,
):
    """Store the numbers of some rows for one chunk."""
    at = partials + i * chunks + chunk
    tl.store(at, top_x, mask=mask)
    tl.store(at + size, sum_x, mask=mask)
    tl.store(at + 2 * size, top_y, mask=mask)
    tl.store(at + 3 * size, sum_y, mask=mask)
    tl.store(at + 4 * size, shift, mask=mask)
    tl.store(at + 5 * size, moment, mask=mask)


@triton.jit
def divisor(temperature, i, mask):
    """Return T of rows i, 1 where T = 0: float32 [rows], from temperature, float32 [n]."""
    t = tl.load(temperature + i, mask=mask, other=1.0)
    return tl.where(t > 0, t, 1.0)


@triton.jit
def _joined(top, total):
    """Return the maximum of chunks' maxima, their factors [chunks], and the sum over all chunks."""
    base = finite(tl.max(top, 0))
    scale = tl.exp(top - base)
    return base, scale, tl.sum(total * scale, 0)


@triton.jit(do_not_specialize=["count", "chunks"])
def _join_kernel(
    partials,  # float32 [6, n, chunks] contiguous
    joined,  # float32 [4, n] contiguous, written, in the order of Statistics
    count,  # n
    chunks,  # chunks of the vocabulary
    BLOCK: tl.constexpr,  # a power of 2, at least chunks
):
    """Join the chunks of one row; grid (n,)."""
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
    tl.store(joined + row, base_x + tl.log(all_x))
    tl.store(joined + count + row, base_y + tl.log(all_y))
    tl.store(joined + 2 * count + row, tl.where(kl < 0, 0.0, kl))
    tl.store(joined + 3 * count + row, tl.log(all_y) - moment)


@triton.jit(
    do_not_specialize=["before_stride", "after_stride", "count", "chunks"],
    do_not_specialize_on_alignment=["rows"],
)
def _measure_kernel(
    before,  # float32 logits [n, |V|], tokens contiguous
    after,  # float32 logits [N, |V|], tokens contiguous, read at rows
    before_stride,  # from a row of before to the next, in units of UNIT elements
    after_stride,  # the same of after
    rows,  # int64 [n], places in after
    vocabulary,  # |V|
    temperature,  # float32 [n]
    partials,  # float32 [6, n, chunks] contiguous, written
    count,  # n
    chunks,  # chunks of BLOCK tokens
    UNIT: tl.constexpr,  # elements, 16 or 1: `unit_of`
    BLOCK: tl.constexpr,  # tokens of a chunk
):
    """Reduce one chunk of one row to its six numbers; grid (n, chunks)."""
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
    top_x, sum_x, top_y, sum_y, shift, moment = start(1)
    top_x, sum_x, top_y, sum_y, shift, moment = accumulate(
        x, y, top_x, sum_x, top_y, sum_y, shift, moment
    )
    size = count * chunks
    keep(partials, i, chunk, chunks, size, mask, top_x, sum_x, top_y, sum_y, shift, moment)


def unit_of(*logits: Tensor) -> int:
    """Return the unit of the strides that kernels get: 16 where it divides all sizes, else 1.

    In units of 16, wide loads are possible. Triton would specialise on each stride itself, which
    for a padded |V| differs in a batch of one row.

    Args:
        logits: tensors [n, |V|].
    """
    return 16 if all(z.shape[1] % 16 == z.stride(0) % 16 == 0 for z in logits) else 1


def tempered(temperature: Tensor | None, count: int, device: torch.device) -> Tensor:
    """Return T of n rows, float32 [n]: ones for None, which would be another variant to compile."""
    return torch.ones(count, device=device) if temperature is None else temperature


def room(count: int, chunks: int, device: torch.device) -> Tensor:
    """Return memory for the numbers of n rows, float32 [6, n, chunks]."""
    return torch.empty(NUMBERS, count, chunks, dtype=torch.float32, device=device)


def joined(partials: Tensor) -> Statistics:
    """Join the chunks of each row; all of partials, from `room`, must be written."""
    _, count, chunks = partials.shape
    result = torch.empty(4, count, dtype=torch.float32, device=partials.device)
    block = max(power_of_2(chunks), _MIN_JOINED)
    _join_kernel[(count,)](partials, result, count, chunks, BLOCK=block, enable_fp_fusion=True)
    return Statistics(*result)


def measure(before: Tensor, after: Tensor, rows: Tensor, temperature: Tensor | None) -> Statistics:
    """Return the statistics of a change from logits `before` to the rows of logits `after`.

    Args:
        before: float32 [n, |V|].
        after: float32 [N, |V|].
        rows: int64 [n], places of the rows in `after`.
        temperature: float32 [n]; None for 1.
    """
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
