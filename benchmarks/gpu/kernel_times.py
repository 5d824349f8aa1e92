"""Part 5: each kernel's time beside that of the bytes it has to move.

A kernel is held against eager PyTorch on the same inputs before it is timed. On a CPU it runs in
Triton's interpreter, so the result is checked there and the time says nothing.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import kernel_floors as floors
import torch

from .served import Setup

ROWS = {"cpu": [1, 3], "cuda": [1, 64, 256, 1024]}
VOCABULARIES = {"cpu": [300], "cuda": [32_000, 128_256, 262_144]}
WIDTHS = {"cpu": 64, "cuda": 4096}
OUTPUTS, RANK, MODELS = 1, 64, 3


def check(setup: Setup) -> dict[str, Any]:
    """A row for each kernel and size."""
    import kernels  # here: Triton reads how it is to run when it is imported

    torch.manual_seed(0)
    timed = kernels.median_us if setup.cuda else interpreted_us
    bandwidth = kernels.copy_bandwidth() if setup.cuda else None
    rows = []
    for case in cases(kernels, setup.device):
        rows.append(row(kernels, case, timed, bandwidth))
        print(f"kernels: {rows[-1]}", file=sys.stderr, flush=True)
        if setup.cuda:
            torch.cuda.empty_cache()
    wrong = [f"{r['operation']} {r}" for r in rows if r.get("wrong")]
    return {"ok": not wrong, "wrong": wrong, "copy bandwidth, bytes/s": bandwidth, "rows": rows}


def cases(kernels: Any, device: str) -> Iterator[Any]:
    """Of `benchmarks/kernels.py`."""
    width = WIDTHS[device]
    for n in ROWS[device]:
        size = {"rows": n, "width": width, "outputs": OUTPUTS}
        yield kernels.Case("score", size, floors.score(n, width, OUTPUTS, weighted=True))
    for v, n in itertools.product(VOCABULARIES[device], ROWS[device]):
        size = {"rows": n, "vocabulary": v}
        tilted = {**size, "rank": RANK, "outputs": OUTPUTS}
        yield kernels.Case("tilt", tilted, floors.tilt(n, v, RANK, OUTPUTS))
        yield kernels.Case("mix", {**size, "models": MODELS}, floors.mix(n, v, MODELS))
        both = kernels.mix_and_tilt(n, v, MODELS, RANK, OUTPUTS)
        yield kernels.Case("mix and tilt", {**tilted, "models": MODELS}, both)


def row(
    kernels: Any, case: Any, timed: Callable[[Callable[[], Any]], float], bandwidth: float | None
) -> dict[str, Any]:
    """A case's times in microseconds, or what went wrong with it."""
    made: dict[str, Any] = {"operation": case.operation, **case.size, "bytes": case.floor.bytes}
    try:
        arms = kernels.arms(case)
        made |= {"us": timed(arms.kernel), "eager us": timed(arms.eager)}
    except torch.OutOfMemoryError:
        return {**made, "skipped": "out of memory"}
    except Exception as error:  # another size may work
        return {**made, "wrong": f"{type(error).__name__}: {str(error)[:1000]}"}
    if bandwidth is not None:
        made["floor us"] = case.floor.seconds(bandwidth) * 1e6
        made["share of copy bandwidth"] = made["floor us"] / made["us"]
    return made


def interpreted_us(arm: Callable[[], Any]) -> float:
    """Median of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        arm()
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)
