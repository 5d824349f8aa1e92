"""Floors of the kernels: bytes and flops against counts by hand."""

import kernel_floors as floors


def test_floor_of_scoring_linear_heads_matches_hand_count() -> None:
    """1024 states of 4096 bfloat16, 8 heads: the states are all but everything."""
    found = floors.score(1024, 4096, 8)
    states, index, values = 1024 * 4096 * 2, 1024 * 8, 1024 * 8 * 4
    weights = (8 * 4096 + 8 * 4) * 4  # a row and bias, output, shift and scale of each
    assert found.bytes == states + index + values + weights == 8_560_768
    assert found.flops == 2 * 1024 * 4096 * 8


def test_floor_of_scoring_an_mlp_matches_hand_count() -> None:
    found = floors.score(2, 8, 3, mlp_width=5, itemsize=4, weighted=True)
    states, index, values = 2 * 8 * 4, 2 * 8, 2 * 3 * 4
    first, second, finish = (5 * 8 + 5) * 4, 5 * 3 * 4, 3 * 4 * 4
    weights, total = 2 * 3 * 4, 2 * 4
    assert found.bytes == states + index + values + first + second + finish + weights + total
    assert found.flops == 2 * (2 * 5 * 8 + 2 * 5 * 3 + 2 * 3)


def test_floor_of_tilting_matches_hand_count() -> None:
    """256 rows of Llama 3's vocabulary, rank 64: 263 MB of logits and 33 MB of B."""
    found = floors.tilt(256, 128_256, 64, 1)
    logits, matrix, factors = 2 * 256 * 128_256 * 4, 128_256 * 64 * 4, 256 * 64 * 4
    assert found.bytes == logits + matrix + factors + 256 * (8 + 4 * 5)
    assert (logits, matrix) == (262_668_288, 32_833_536)
    assert found.flops == 256 * 128_256 * 129
    assert floors.tilt(256, 128_256, 64, 1, measured=False).bytes == found.bytes - 256 * 20


def test_floor_of_mixing_matches_hand_count() -> None:
    found = floors.mix(3, 100, 4, itemsize=2)
    assert found.bytes == 3 * 100 * (4 + 4 + 3 * 2) + 3 * (4 * 4 + 8 + 20)
    assert found.flops == 3 * 100 * 7


def test_floor_seconds_are_bytes_over_bandwidth() -> None:
    assert floors.Floor(4_800_000, 0).seconds(4.8e12) == 1e-6
