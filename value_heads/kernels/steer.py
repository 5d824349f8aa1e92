"""Mixing and tilting in one pass over the logits, with its statistics: a Triton kernel.

A program has a tile of rows and a chunk of the vocabulary. The row tiles of one chunk are next to
each other in the grid, so all but the first read B from the L2 cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import MIXES, ROW_TILES, TILTED, BatchMixture, BatchTilt, Statistics
from .sizes import cdiv, power_of_2
from .statistics import accumulate, divisor, joined, keep, measure, room, start, tempered, unit_of

_PROGRAMS = 512
"""Programs of a launch, a few per multiprocessor of a large GPU; beyond these, chunks grow."""
_MAX_TILES = 16
"""Tiles of the vocabulary in a chunk, at most."""
_PLACES = 16
"""Places of the top k in one program."""
PRECISION = "ieee" if torch.version.hip else "tf32x3"
"""Precision of float32 products: three TF32 products on tensor cores come close to float32."""
_MIXES, _TILTED = tl.constexpr(MIXES), tl.constexpr(TILTED)


@triton.jit(
    do_not_specialize=["stride", "count", "chunks", "tiles"],
    do_not_specialize_on_alignment=["rows", "kinds", "weights", "temperature"],
)
def _steer_kernel(
    logits,  # float32 [N, |V|], tokens contiguous; the n rows are read and overwritten
    stride,  # from a row of logits to the next, in units of UNIT elements
    rows,  # int64 [n], places of the rows in logits
    kinds,  # int64 [n], bits MIXES and TILTED of each row
    vocabulary,  # |V|
    members,  # M tensors of logits [m, |V_i|] of the first m <= n rows, tokens contiguous
    member_strides,  # M odd numbers 2 s + 1, s from a row to the next in units of MEMBER_UNIT
    weights,  # float32 [n, 1 + M] contiguous, the base's in column 0
    shared,  # tokens that all models have; a mixture is -inf beyond them
    factors,  # u of each of H heads, float32 [n, G_h, r_h] contiguous
    tokens,  # B of each head [G_h, |V_h|, r_h], contiguous in r
    output_strides,  # per head, from an output of B to the next, in elements
    token_strides,  # per head, from a token of B to the next, in elements
    head_vocabularies,  # |V_h| of each head; later tokens are tilted by 0
    ranks,  # r_h of each head
    temperature,  # float32 [n], for the statistics; unread unless MEASURED
    partials,  # float32 [6, n, chunks], as `keep` stores them; unwritten unless MEASURED
    count,  # n
    chunks,  # chunks of the vocabulary, the second size of the grid
    tiles,  # tiles of BLOCK_V tokens in a chunk
    MEMBERS: tl.constexpr,  # M
    MIXED: tl.constexpr,  # whether any row may mix
    HEADS: tl.constexpr,  # H; 0 without a tilt
    OUTPUTS: tl.constexpr,  # G_h of each head
    PRECISION: tl.constexpr,  # precision of the products u . B
    MEASURED: tl.constexpr,  # whether to keep statistics
    UNIT: tl.constexpr,  # elements, 16 or 1: `unit_of`
    MEMBER_UNIT: tl.constexpr,  # the same of the members
    BLOCK_N: tl.constexpr,  # rows of a tile
    BLOCK_V: tl.constexpr,  # tokens of a tile
    BLOCK_R: tl.constexpr,  # ranks in one step of a product
):
    """Steer a tile of the rows over one chunk of the vocabulary; grid (row tiles, chunks)."""
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    chunk = tl.program_id(1)
    mask = i < count
    row = tl.load(rows + i, mask=mask, other=0).to(tl.int64)
    kind = tl.load(kinds + i, mask=mask, other=0)
    mixed = (kind & _MIXES) > 0
    tilted = (kind & _TILTED) > 0
    some_mixed = tl.max(mixed.to(tl.int32), 0) > 0
    some_tilted = tl.max(tilted.to(tl.int32), 0) > 0
    if MEASURED:
        t = divisor(temperature, i, mask)[:, None]
    top_x, sum_x, top_y, sum_y, shift, moment = start(BLOCK_N)
    # Nothing is hoisted from the loop: addresses held through it would take the registers of a
    # second block.
    for tile in tl.range(tiles, disable_licm=True):
        v = (chunk * tiles + tile) * BLOCK_V + tl.arange(0, BLOCK_V)
        inside = mask[:, None] & (v < vocabulary)[None, :]
        at = (logits + row * (stride * UNIT))[:, None] + v[None, :]
        # Before the product, which hides the time that it takes.
        before = tl.load(at, mask=inside, other=float("-inf"))
        x = before
        after = before
        if MIXED and some_mixed:
            own = tl.load(weights + i * (MEMBERS + 1), mask=mixed, other=0.0)[:, None]
            mixture = tl.where(own == 0, 0.0, own * before)
            for m in tl.static_range(MEMBERS):
                w = tl.load(weights + i * (MEMBERS + 1) + 1 + m, mask=mixed, other=0.0)[:, None]
                read = inside & (v < shared)[None, :] & (w != 0)
                begin = i.to(tl.int64) * (member_strides[m] // 2 * MEMBER_UNIT)
                place = (members[m] + begin)[:, None] + v[None, :]
                mixture += w * tl.load(place, mask=read, other=0.0).to(tl.float32)
            mixture = tl.where((v < shared)[None, :], mixture, float("-inf"))
            after = tl.where(mixed[:, None], mixture, before)
        if HEADS > 0 and some_tilted:
            delta = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
            for h in tl.static_range(HEADS):
                some = (v < head_vocabularies[h])[None, :]
                for g in range(OUTPUTS[h]):
                    for first in range(0, ranks[h], BLOCK_R):
                        r = first + tl.arange(0, BLOCK_R)
                        u = tl.load(
                            factors[h] + (i[:, None] * OUTPUTS[h] + g) * ranks[h] + r[None, :],
                            mask=tilted[:, None] & (r < ranks[h])[None, :],
                            other=0.0,
                        )
                        b = tl.load(
                            tokens[h]
                            + g * output_strides[h]
                            + v[None, :].to(tl.int64) * token_strides[h]
                            + r[:, None],
                            mask=some & (r < ranks[h])[:, None],
                            other=0.0,
                        ).to(tl.float32)
                        delta = tl.dot(u, b, delta, input_precision=PRECISION)
            after = tl.where(tilted[:, None], after + delta, after)
            # Never delta: it gives x the layout of y in registers. Triton would otherwise reduce x
            # in two layouts, for 40 registers more.
            x = tl.where(count < 0, delta, before)
        tl.store(at, after, mask=inside)
        if MEASURED:
            top_x, sum_x, top_y, sum_y, shift, moment = accumulate(
                x / t,
                after / t,
                top_x,
                sum_x,
                top_y,
                sum_y,
                shift,
                moment,
            )
    if MEASURED:
        size = count * chunks
        keep(partials, i, chunk, chunks, size, mask, top_x, sum_x, top_y, sum_y, shift, moment)


@triton.jit(do_not_specialize=["most"])
def _chosen_kernel(
    ids,  # int64 [n, most] contiguous, tokens of each row's top k, the most likely first
    top_k,  # int64 [n], k of each row, 0 to most
    factors,  # u of one head, float32 [n, G, r] contiguous
    tokens,  # B of the head [G, |V_h|, r], contiguous in r
    output_stride,  # from an output of B to the next, in elements
    token_stride,  # from a token of B to the next, in elements
    head_vocabulary,  # |V_h|; later tokens are tilted by 0
    delta,  # float32 [n, most] contiguous, added to in place
    most,  # the largest k
    OUTPUTS: tl.constexpr,  # G
    RANK: tl.constexpr,  # r
    BLOCK_K: tl.constexpr,  # places of one program
    BLOCK_R: tl.constexpr,  # ranks in one step of a product
):
    """Add u . B_z of the tokens z at some places of one row's top k; grid (n, place blocks)."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = place < tl.load(top_k + row)
    z = tl.load(ids + row * most + place, mask=mask, other=0)
    mask = mask & (z < head_vocabulary)
    r = tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_K], tl.float32)
    for g in range(OUTPUTS):
        for first in range(0, RANK, BLOCK_R):
            k = first + r
            u = tl.load(factors + (row * OUTPUTS + g) * RANK + k, mask=k < RANK, other=0.0)
            b = tl.load(
                tokens + g * output_stride + z[:, None] * token_stride + k[None, :],
                mask=mask[:, None] & (k < RANK)[None, :],
                other=0.0,
            ).to(tl.float32)
            total += tl.sum(u[None, :] * b, 1)
    at = delta + row * most + place
    tl.store(at, tl.load(at, mask=mask, other=0.0) + total, mask=mask)


def steer(
    logits: Tensor,
    rows: Tensor,
    *,
    mixture: BatchMixture | None = None,
    tilt: BatchTilt | None = None,
    temperature: Tensor | None = None,
    measured: bool = True,
    kinds: Tensor | None = None,
) -> Statistics | None:
    """Do as `reference.steer`, for float32 logits with contiguous rows.

    Each row is read and written once. With `tilt.top_k`, however, the rows are copied first:
    torch's choice of the k most likely tokens is a pass of its own, and so are the statistics.

    A tile without a tilted row computes no product, and one without a mixed row reads no member:
    sort rows by kind, rows that mix first.
    """
    if kinds is None:  # None would be another variant to compile
        kinds = torch.full_like(rows, MIXES | TILTED)
    if tilt is None or tilt.top_k is None:
        return _pass(logits, rows, kinds, mixture, tilt, temperature, measured)
    before = untilted = logits[rows]
    if mixture is not None:
        _pass(logits, rows, kinds, mixture, None, None, False)
        untilted = logits[rows]
    _tilt_top_k(logits, rows, untilted, tilt, torch.where(kinds & TILTED > 0, tilt.top_k, 0))
    return measure(before, logits, rows, temperature) if measured else None


def _pass(
    logits: Tensor,
    rows: Tensor,
    kinds: Tensor,
    mixture: BatchMixture | None,
    tilt: BatchTilt | None,
    temperature: Tensor | None,
    measured: bool,
) -> Statistics | None:
    count, vocabulary = len(rows), logits.shape[1]
    members = tuple(map(_aligned, mixture.members)) if mixture else ()
    factors = tuple(u.contiguous() for u in tilt.factors) if tilt else ()
    tokens = tilt.tokens if tilt else ()
    block_n, block_v = _blocks(count) if tokens else (1, 2048)
    tiles, chunks = _chunks(cdiv(count, block_n), cdiv(vocabulary, block_v))
    partials = room(count, chunks, logits.device) if measured else logits
    unit, member_unit = unit_of(logits), unit_of(*members)
    _steer_kernel[(cdiv(count, block_n), chunks)](
        logits,
        logits.stride(0) // unit,
        rows,
        kinds,
        vocabulary,
        members,
        # Odd: do_not_specialize does not reach numbers of a tuple, and Triton makes a variant of
        # each that is 1 or that 16 divides.
        tuple(member.stride(0) // member_unit * 2 + 1 for member in members),
        mixture.weights if mixture else logits,
        mixture.vocabulary if mixture else vocabulary,
        factors,
        tokens,
        tuple(b.stride(0) for b in tokens),
        tuple(b.stride(1) for b in tokens),
        tuple(b.shape[1] for b in tokens),
        tuple(b.shape[2] for b in tokens),
        tempered(temperature, count, logits.device) if measured else logits,
        partials,
        count,
        chunks,
        tiles,
        MEMBERS=len(members),
        MIXED=mixture is not None,
        HEADS=len(tokens),
        OUTPUTS=tuple(b.shape[0] for b in tokens),
        PRECISION=PRECISION,
        MEASURED=measured,
        UNIT=unit,
        MEMBER_UNIT=member_unit,
        BLOCK_N=block_n,
        BLOCK_V=block_v,
        BLOCK_R=16,
        num_warps=8 if tokens else 4,
        enable_fp_fusion=True,
    )
    return joined(partials) if measured else None


def _aligned(member: Tensor) -> Tensor:
    """Return the logits at an address that 16 divides, copied if need be: a variant depends on it.

    Logits that lie behind other rows of |V| elements begin elsewhere unless 4 divides |V|.
    """
    return member if member.data_ptr() % 16 == 0 else member.clone()


def _blocks(count: int) -> tuple[int, int]:
    """Return rows and tokens of a tile whose registers leave room for two on a multiprocessor.

    The more rows, the less often B is read.
    """
    rows = next((rows for rows in ROW_TILES if count <= rows), ROW_TILES[-1])
    return rows, 64 if rows <= 32 else 32


def _chunks(row_tiles: int, tiles: int) -> tuple[int, int]:
    """Return tiles of the vocabulary in a chunk, and chunks: small ones while programs are few."""
    per_chunk = min(max(row_tiles * tiles // _PROGRAMS, 1), _MAX_TILES)
    return per_chunk, cdiv(tiles, per_chunk)


def _tilt_top_k(
    logits: Tensor, rows: Tensor, untilted: Tensor, tilt: BatchTilt, top_k: Tensor
) -> None:
    """Add the tilt less its mean over the k most likely tokens; `untilted` is logits[rows]."""
    values, ids = untilted[:, : tilt.vocabulary].topk(tilt.most)
    delta = torch.zeros(ids.shape, dtype=torch.float32, device=logits.device)
    for factors, tokens in zip(tilt.factors, tilt.tokens, strict=True):
        outputs, head_vocabulary, rank = tokens.shape
        _chosen_kernel[(len(rows), cdiv(tilt.most, _PLACES))](
            ids,
            top_k,
            factors.contiguous(),
            tokens,
            tokens.stride(0),
            tokens.stride(1),
            head_vocabulary,
            delta,
            tilt.most,
            OUTPUTS=outputs,
            RANK=rank,
            BLOCK_K=_PLACES,
            BLOCK_R=min(power_of_2(rank), 128),
            enable_fp_fusion=True,
        )
    inside = torch.arange(tilt.most, device=ids.device) < top_k[:, None]
    centre = delta.sum(-1, keepdim=True) / top_k[:, None]
    logits[rows[:, None], ids] = torch.where(inside, values + (delta - centre), values)
