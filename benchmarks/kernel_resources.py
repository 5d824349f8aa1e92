"""What the kernels compile to for a GPU that is not there: registers, stack, shared memory.

Run, it compiles what the worker launches at the start of a server with a value head, a Q-head and
two members, and says how many variants that is and how long each takes on one core:

    python benchmarks/kernel_resources.py [--vocabulary 128256] [--width 4096]

With `--table` it compiles every kernel of each operation for each GPU that it knows, at all sizes,
equal variants once. Beside what a kernel needs is the time that the operation's bytes take at the
GPU's nominal bandwidth. That is no measurement.

    python benchmarks/kernel_resources.py --table
"""

import argparse
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import kernel_floors as floors
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from value_heads import HeadConfig, QHead, ValueHead
from value_heads.kernels import (
    ROW_TILES,
    BatchMixture,
    BatchTilt,
    PackedHeads,
    PathKL,
    operations,
)

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
VOCABULARIES = [32_000, 128_256, 151_936, 262_144]
WIDTHS = [2048, 4096, 8192]
ROWS, RANK, OUTPUTS, MLP_WIDTH, MODELS = 256, 64, 8, 1024, 3


class Target(NamedTuple):
    """A GPU to compile for, by its data sheet."""

    capability: int
    """Ten times the compute capability."""
    shared_bytes: int
    """Of shared memory that one block may have."""
    bandwidth: float
    """Bytes of memory a second; what a copy reaches is less."""
    name: str


TARGETS = [
    Target(80, 163 * 1024, 1.9e12, "A100"),
    Target(90, 227 * 1024, 3.35e12, "H100 SXM"),
    Target(100, 227 * 1024, 8.0e12, "B200"),
]


class Launch(NamedTuple):
    """A kernel with what it is given."""

    kernel: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]


class Operation(NamedTuple):
    """An operation at a size, which launches kernels."""

    name: str
    size: dict[str, int]
    call: Callable[[], Any]
    floor: floors.Floor | None = None
    """None where no floor is counted."""


def resources(targets: Sequence[Target] = TARGETS) -> Iterator[dict[str, Any]]:
    """A row for each kernel of each operation and size; equal variants are compiled once."""
    made: dict[tuple[str, int], dict[str, Any]] = {}
    for operation in every_operation():
        for launch in launches(operation.call):
            for target in targets:
                key = (
                    variant(launch, GPUTarget("cuda", target.capability, 32))[0],
                    target.capability,
                )
                if key not in made:
                    made[key] = compiled(launch, target.capability)
                yield {
                    "operation": operation.name,
                    **operation.size,
                    **made[key],
                    "GPU": target.name,
                    **predicted(operation, target),
                }


def predicted(operation: Operation, target: Target) -> dict[str, Any]:
    """The time that the whole operation's bytes take at the target's nominal bandwidth."""
    if operation.floor is None:
        return {}
    us = round(operation.floor.seconds(target.bandwidth) * 1e6, 2)
    return {"us of the operation's bytes": us, "at TB/s": target.bandwidth / 1e12}


def every_operation() -> Iterator[Operation]:
    """All operations at all sizes, on tensors that have no memory."""
    for width in WIDTHS:
        yield from scoring(width)
    for vocabulary in VOCABULARIES:
        yield from steering(vocabulary)
    # B of a tied head is as wide as the model: its strides may pass 32 bits.
    for vocabulary, width in ((VOCABULARIES[0], WIDTHS[0]), (VOCABULARIES[-1], WIDTHS[-1])):
        yield tied(vocabulary, width)
    yield from of_rows_alone()


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without memory: a variant depends on dtypes, strides and alignment alone."""
    return torch.empty(shape, dtype=dtype, device="meta")


def index(count: int = ROWS) -> Tensor:
    return meta(count, dtype=torch.int64)


def packed(width: int, outputs: int, units: int) -> PackedHeads:
    each = meta(outputs)
    return PackedHeads(
        first=meta(units, width),
        first_bias=meta(units),
        gelu=meta(units),
        second=meta(outputs, units),
        bias=each,
        sigmoid=each,
        shift=each,
        scale=each,
        hidden_units=0 if units == outputs else units,
    )


def scoring(width: int) -> Iterator[Operation]:
    """Value scoring of bfloat16 states."""
    hidden, weights = meta(ROWS, width, dtype=torch.bfloat16), meta(ROWS, OUTPUTS)
    size = {"rows": ROWS, "width": width}
    for name, units, mlp_width in (("linear", OUTPUTS, 0), ("MLP", MLP_WIDTH, MLP_WIDTH)):
        heads = packed(width, OUTPUTS, units)
        floor = floors.score(ROWS, width, OUTPUTS, mlp_width=mlp_width, weighted=True)
        call = partial(operations(True).score, hidden, index(), heads, weights)
        yield Operation(f"score, {name}", size, call, floor)


def tilt_of(rows: int, vocabulary: int, **limits: Any) -> BatchTilt:
    return BatchTilt(factors=(meta(rows, 1, RANK),), tokens=(meta(1, vocabulary, RANK),), **limits)


def mixture_of(rows: int, vocabulary: int) -> BatchMixture:
    """Of bfloat16 logits."""
    members = (meta(rows, vocabulary, dtype=torch.bfloat16) for _ in range(MODELS - 1))
    weights = meta(rows, MODELS)
    return BatchMixture(members=tuple(members), weights=weights, vocabulary=vocabulary)


def steering(vocabulary: int) -> Iterator[Operation]:
    """Mixing and tilting, at each tile of rows."""
    steer = operations(True).steer

    def operation(name: str, floor: floors.Floor | None, rows: int = ROWS, **by: Any) -> Operation:
        given = {"temperature": meta(rows), "kinds": index(rows), **by}
        call = partial(steer, meta(rows, vocabulary), index(rows), **given)
        return Operation(name, {"rows": rows, "vocabulary": vocabulary}, call, floor)

    for rows in (*ROW_TILES, ROWS):
        floor = floors.tilt(rows, vocabulary, RANK, 1)
        yield operation("tilt", floor, rows, tilt=tilt_of(rows, vocabulary))
    mixture = mixture_of(ROWS, vocabulary)
    floor = floors.mix(ROWS, vocabulary, MODELS)
    yield operation("mix", floor, mixture=mixture)
    for rows in (ROW_TILES[0], ROWS):
        both = {"mixture": mixture_of(rows, vocabulary), "tilt": tilt_of(rows, vocabulary)}
        yield operation("mix and tilt", None, rows, **both)
    limits = index()
    yield operation("tilt, top k", None, tilt=tilt_of(ROWS, vocabulary, top_k=limits, most=20))


def tied(vocabulary: int, width: int) -> Operation:
    """A tilt by a low-rank head and by the LM head itself."""
    two = BatchTilt(
        factors=(meta(ROWS, 2, RANK), meta(ROWS, 1, width)),
        tokens=(meta(2, vocabulary, RANK), meta(1, vocabulary, width, dtype=torch.bfloat16)),
    )
    size = {"rows": ROWS, "vocabulary": vocabulary, "width": width}
    call = partial(operations(True).steer, meta(ROWS, vocabulary), index(), tilt=two)
    return Operation("tilt by two heads, one tied", size, call)


def of_rows_alone() -> Iterator[Operation]:
    """What knows neither a vocabulary nor a width."""
    kernels, each = operations(True), meta(ROWS)
    paths = PathKL.zeros(ROWS, each.device)
    charge = partial(kernels.charge, paths, index(), index(), each, each)
    yield Operation("charge", {"rows": ROWS}, charge)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Kernels launched meanwhile; none of them runs."""
    seen: list[Launch] = []

    def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        seen.append(Launch(kernel, args, named))

    with patch.object(triton.runtime.JITFunction, "run", launch):
        yield seen


def launches(call: Callable[[], Any]) -> list[Launch]:
    """The kernels that an operation launches."""
    with recorded() as seen:
        call()
    return seen


def variant(launch: Launch, target: GPUTarget) -> tuple[str, ASTSource, Any]:
    """What Triton tells variants apart by, the source of this one, and its options."""
    kernel, backend = launch.kernel, make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialisation, given = bind(*launch.arguments, **launch.named)
    packed = kernel._pack_args(backend, launch.named, bound, specialisation, given)
    options, signature, constants, attributes = packed
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return f"{kernel.__name__} {specialisation} {given}", source, options


def compiled(launch: Launch, capability: int) -> dict[str, Any]:
    """What a kernel needs, compiled for a compute capability."""
    target = GPUTarget("cuda", capability, 32)
    _, source, options = variant(launch, target)
    made = triton.compile(source, target=target, options=options.__dict__)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [str(TOOL), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = {name: int(count) for name, count in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    return {
        "kernel": launch.kernel.__name__,
        "compute capability": capability / 10,
        "warps": options.num_warps,
        "registers": found["REG"],
        "stack bytes": found["STACK"],
        "shared bytes": made.metadata.shared,
    }


def at_start(width: int, vocabulary: int) -> list[Launch]:
    """What the worker launches when a server with one head of each kind and two members starts."""
    from cdserve.worker.scorer import ValueScorer
    from cdserve.worker.steerer import Steerer

    place = {"rewards": ("r",), "hidden_size": width, "shift": (0.0,), "scale": (1.0,)}
    value = HeadConfig(architecture="linear", base_model="any", **place)
    q = HeadConfig(
        architecture="lowrank", rank=64, vocab_size=vocabulary, base_model="any", **place
    )
    members, cpu = ("tuned", "ref"), torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/value", f"{folder}/q"]
        ValueHead(value).save_pretrained(paths[0])
        QHead(q).save_pretrained(paths[1])
        scorer = ValueScorer(paths[:1], cpu, True)
        steerer = Steerer(paths[1:], cpu, vocabulary, 64, True, True, members)
    logits = torch.zeros(64, vocabulary, dtype=torch.bfloat16)
    hidden = torch.zeros(64, 3 * width, dtype=torch.bfloat16)[:, :width]
    with recorded() as seen:
        scorer.warm_up(hidden)
        steerer.warm_up(logits, hidden, lambda rows: dict.fromkeys(members, logits[rows]), None)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--table", action="store_true", help="every kernel, size and GPU instead")
    args = parser.parse_args()
    if args.table:
        for row in resources():
            print(json.dumps(row), flush=True)
        return
    triton.knobs.compilation.always_compile = True
    target = GPUTarget("cuda", 90, 32)
    variants = {variant(one, target)[0]: one for one in at_start(args.width, args.vocabulary)}
    rows = []
    for launch in variants.values():
        begun = time.perf_counter()
        row = compiled(launch, 90)
        rows.append({**row, "seconds": round(time.perf_counter() - begun, 2)})
        print(json.dumps(rows[-1]), flush=True)
    total = sum(row["seconds"] for row in rows)
    print(json.dumps({"variants": len(rows), "seconds": round(total, 1)}))


if __name__ == "__main__":
    main()
