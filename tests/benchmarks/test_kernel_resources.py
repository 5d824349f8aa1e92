"""Every kernel, compiled for GPUs that are not there, fits them."""

import os
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="there is no compiler",
)
CAPABILITIES = [8.0, 9.0, 10.0]


def tool() -> ModuleType:
    import kernel_resources  # imports Triton

    return kernel_resources


@cache
def table() -> list[dict[str, Any]]:
    return list(tool().resources())


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_kernel_spills_and_its_shared_memory_fits(capability: float) -> None:
    limit = {target.capability / 10: target.shared_bytes for target in tool().TARGETS}[capability]
    rows = [row for row in table() if row["compute capability"] == capability]
    assert {row["kernel"] for row in rows} == {
        "_charge_kernel",
        "_chosen_kernel",
        "_join_kernel",
        "_measure_kernel",
        "_score_kernel",
        "_steer_kernel",
        "_sum_kernel",
    }
    assert [row for row in rows if row["stack bytes"]] == []
    assert [row for row in rows if row["shared bytes"] > limit] == []


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_two_blocks_of_a_tilt_fit_a_multiprocessor(capability: float) -> None:
    rows = [
        row
        for row in table()
        if row["compute capability"] == capability
        and (row["operation"], row["kernel"]) == ("tilt", "_steer_kernel")
    ]
    assert {row["rows"] for row in rows} == {16, 32, 64, 256}
    registers = 65_536
    assert [row for row in rows if 2 * 32 * row["warps"] * row["registers"] > registers] == []


def test_the_table_has_every_vocabulary_and_width() -> None:
    tilts = {row["vocabulary"] for row in table() if row["operation"] == "tilt"}
    scores = {row["width"] for row in table() if row["operation"] == "score, linear"}
    assert tilts == {32_000, 128_256, 151_936, 262_144}
    assert scores == {2048, 4096, 8192}


def test_the_predicted_time_is_the_bytes_over_the_bandwidth() -> None:
    """256 rows of 128256 float32 logits in and out, B and the statistics, at 3.35 TB/s."""
    (us,) = {
        row["us of the operation's bytes"]
        for row in table()
        if (row["operation"], row["rows"], row["GPU"]) == ("tilt", 256, "H100 SXM")
        and row["vocabulary"] == 128_256
    }
    moved = 2 * 256 * 128_256 * 4 + 128_256 * 64 * 4 + 256 * (64 * 4 + 8 + 20)
    assert us == pytest.approx(moved / 3.35e12 * 1e6, abs=0.01)


def test_each_launch_says_whether_products_are_fused_with_sums() -> None:
    """Triton's default is another one in 3.10."""
    made = [launch for one in tool().every_operation() for launch in tool().launches(one.call)]
    assert [one.kernel.__name__ for one in made if "enable_fp_fusion" not in one.named] == []
