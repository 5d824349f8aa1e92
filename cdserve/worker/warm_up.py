"""Synthetic rows that compile the usual kernels and show vLLM the memory of a full batch.

Triton compiles a kernel for each combination of argument types and sizes, which takes seconds. The
launches of ``steerer`` therefore depend on as little as possible.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from cdserve.worker.rows import BOUNDED, MEASURED, MIXED, TILTED, TOP_K, SteeredRows
from cdserve.worker.tickets import Destinations
from value_heads import QHead
from value_heads.kernels import ROW_TILES

_TOP_K = 2
"""Any value: the kernels do not depend on k."""


def usual(heads: Sequence[QHead], members: int, most: int, measured: bool) -> Iterator[SteeredRows]:
    """Rows of each kind: mixed or not; tilted by one head, all or none; with a top k or not.

    Args:
        heads: Q-heads, in the order of the policies' columns.
        members: number of members.
        most: number of rows of the largest batch.
        measured: whether the KL is computed.
    """
    sizes = _sizes(most)
    flag = MEASURED if measured else 0
    width = sum(len(head.config.rewards) for head in heads)
    tilts: list[tuple[int, Sequence[int]]] = [(0, ())]
    tilts += product((TILTED, TILTED | TOP_K), _columns(heads))
    for mixed, (tilted, columns) in product((0, MIXED) if members else (0,), tilts):
        if not (mixed or tilted):
            continue
        # Only a tilt of all tokens processes rows in tiles.
        for count in sizes if tilted == TILTED else sizes[:1]:
            yield _rows(count, mixed | tilted | flag, columns, width, members)


def heaviest(heads: Sequence[QHead], members: int, most: int) -> SteeredRows | None:
    """A full batch of the rows that need the most memory; None without heads and members."""
    width = sum(len(head.config.rewards) for head in heads)
    flags = (MIXED if members else 0) | (TILTED | TOP_K if width else 0)
    return _rows(most, flags | BOUNDED | MEASURED, range(width), width, members) if flags else None


def _rows(count: int, flags: int, columns: Sequence[int], width: int, members: int) -> SteeredRows:
    each, one = np.arange(count), np.ones(count, np.int64)
    coefficients = np.zeros((count, width), np.float32)
    coefficients[:, list(columns)] = 1.0
    return SteeredRows(
        index=each,
        slots=each,
        tokens=one,
        response_starts=one,
        flags=flags * one,
        top_k=_TOP_K * one if flags & TOP_K else 0 * one,
        coefficients=coefficients,
        weights=np.ones((count, 1 + members), np.float32),
        temperatures=np.ones(count, np.float32),
        budgets=np.full(count, np.inf, np.float32),
        begins=one > 0,
        carried=np.zeros((count, 2)),
        destinations=Destinations(-one, one, one, one),
        any_flags=flags,
        uniform=True,
    )


def _columns(heads: Sequence[QHead]) -> list[Sequence[int]]:
    """Columns of each head alone, and of all heads."""
    columns: list[Sequence[int]] = []
    start = 0
    for head in heads:
        columns.append(range(start, start + len(head.config.rewards)))
        start = columns[-1][-1] + 1
    return columns + [range(start)] * (len(columns) > 1)


def _sizes(most: int) -> list[int]:
    """One number of rows for each tile size of batches up to this size."""
    return [
        min(rows, most)
        for rows, below in zip(ROW_TILES, (0, *ROW_TILES), strict=False)
        if most > below
    ]
