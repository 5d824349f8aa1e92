"""Sizes of grids and blocks. Triton's own functions cost about 4 µs per call on the host."""


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def power_of_2(least: int) -> int:
    """Return the smallest power of 2 that is at least `least`, which is 1 or more."""
    return 1 << (least - 1).bit_length()
