"""What each operation of the hot path must move and compute: the floors of its time."""

from typing import NamedTuple

_FLOAT32, _INT64 = 4, 8


class Floor(NamedTuple):
    """The least that an operation can do, whatever computes it."""

    bytes: int
    """Read and written in the device's memory, each thing once."""
    flops: int
    """Of products and sums; a multiplication and an addition are two."""

    def seconds(self, bandwidth: float) -> float:
        """Return the time that the bytes take at so many a second."""
        return self.bytes / bandwidth


def score(
    rows: int,
    width: int,
    outputs: int,
    *,
    mlp_width: int = 0,
    itemsize: int = 2,
    weighted: bool = False,
) -> Floor:
    """Return the floor of value scoring.

    Args:
        rows: n, hidden states scored.
        width: d, their size.
        outputs: G, of all heads.
        mlp_width: hidden units of all MLPs together; 0 for linear heads.
        itemsize: bytes of a number of the hidden states.
        weighted: whether per-row weights come in and a weighted sum goes out.
    """
    units = mlp_width or outputs
    weights = units * width + mlp_width * (1 + outputs) + 4 * outputs  # bias, output, shift, scale
    moved = rows * (width * itemsize + _INT64) + weights * _FLOAT32 + rows * outputs * _FLOAT32
    if weighted:
        moved += rows * (outputs + 1) * _FLOAT32
    flops = 2 * rows * (units * width + mlp_width * outputs + outputs * weighted)
    return Floor(moved, flops)


def tilt(
    rows: int,
    vocabulary: int,
    rank: int,
    outputs: int,
    *,
    itemsize: int = 4,
    measured: bool = True,
) -> Floor:
    """Return the floor of tilting: float32 logits in and out, B once, u, the statistics.

    Args:
        rows: n, tilted; the others cost nothing.
        vocabulary: |V|.
        rank: r of one output's B.
        outputs: G, of all heads.
        itemsize: bytes of a number of B.
        measured: whether the statistics go out.
    """
    factors = outputs * rank
    moved = 2 * rows * vocabulary * _FLOAT32 + vocabulary * factors * itemsize
    moved += rows * (factors * _FLOAT32 + _INT64) + _statistics(rows, measured)
    return Floor(moved, rows * vocabulary * (2 * factors + 1))


def mix(
    rows: int, vocabulary: int, models: int, *, itemsize: int = 2, measured: bool = True
) -> Floor:
    """Return the floor of mixing: float32 logits of the base in and out, those of members in.

    Args:
        rows: n, mixed; the others cost nothing.
        vocabulary: |V|.
        models: K, the base among them.
        itemsize: bytes of a number of the members' logits.
        measured: whether the statistics go out.
    """
    moved = rows * vocabulary * (2 * _FLOAT32 + (models - 1) * itemsize)
    moved += rows * (models * _FLOAT32 + _INT64) + _statistics(rows, measured)
    return Floor(moved, rows * vocabulary * (2 * models - 1))


def _statistics(rows: int, measured: bool) -> int:
    return rows * 5 * _FLOAT32 if measured else 0  # four of them, and the temperature
