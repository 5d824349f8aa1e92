"""What the kernels compile to for a GPU that is not there: registers, stack, shared memory.

Run, it compiles what the plugin launches at the start of a server with a value head, a Q-head and
two members, and says how many variants that is and how long each takes on one core:

    python benchmarks/kernel_resources.py [--vocabulary 128256] [--width 4096]
"""

import argparse
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from value_heads import HeadConfig, QHead, ValueHead
from value_heads.kernels import Mixture, PackedHeads, PathKL, Tilt, operations

TARGETS = [80, 90]
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Launch(NamedTuple):
    """A kernel with what it is given."""

    kernel: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]


def resources() -> list[dict[str, Any]]:
    """A row for each kernel of each operation, compiled as the operation launches it."""
    return [
        {"operation": name, **compiled(launch, target)}
        for name, call in calls().items()
        for launch in launches(call)
        for target in TARGETS
    ]


def calls() -> dict[str, Callable[[], Any]]:
    """Operations on small tensors whose shapes and strides are specialised as served ones are."""
    kernels = operations(True)
    z, rows, members = torch.zeros(64, 4096), torch.arange(64), torch.zeros(2, 64, 4096).bfloat16()
    tilt = Tilt(factors=(torch.zeros(64, 1, 64),), tokens=(torch.zeros(1, 4096, 64),))
    mixture = Mixture(members=(*members,), weights=torch.zeros(64, 3), vocabulary=4096)
    tied = Tilt(
        factors=(torch.zeros(64, 2, 64), torch.zeros(64, 1, 4096)),
        tokens=(torch.zeros(2, 4096, 64), torch.zeros(1, 4096, 4096).bfloat16()),
    )
    limited = replace(tilt, top_k=torch.full((64,), 20), most=20)
    few = Tilt(factors=(tilt.factors[0][:16],), tokens=tilt.tokens)
    temperature = torch.ones(64)

    def heads(outputs: int, units: int) -> PackedHeads:
        linear = outputs == units
        none = torch.zeros(outputs)
        return PackedHeads(
            first=torch.zeros(units, 4096),
            first_bias=torch.zeros(units),
            gelu=torch.zeros(units),
            second=torch.zeros(outputs, units),
            bias=none,
            sigmoid=none,
            shift=none,
            scale=none,
            hidden_units=0 if linear else units,
        )

    hidden = torch.zeros(64, 4096).bfloat16()
    paths = PathKL.zeros(256, temperature.device)
    numbers = torch.zeros(64, 16), rows, temperature, temperature
    return {
        "score, 8 linear": lambda: kernels.score(hidden, rows, heads(8, 8), torch.zeros(64, 8)),
        "score, MLP": lambda: kernels.score(hidden, rows, heads(8, 1024)),
        "tilt, 16 rows": lambda: kernels.steer(z, rows[:16], tilt=few, temperature=temperature),
        "tilt, 64 rows": lambda: kernels.steer(z, rows, tilt=tilt, temperature=temperature),
        "mix": lambda: kernels.steer(z, rows, mixture=mixture, temperature=temperature),
        "mix and tilt": lambda: kernels.steer(
            z, rows, mixture=mixture, tilt=tilt, temperature=temperature
        ),
        "tilt by two heads, one tied": lambda: kernels.steer(z, rows, tilt=tied),
        "tilt, top k": lambda: kernels.steer(z, rows, tilt=limited),
        "mix, normalised": lambda: kernels.steer(
            z, rows, mixture=replace(mixture, normalised=True), measured=False
        ),
        "charge": lambda: kernels.charge(paths, rows, rows, temperature, temperature),
        "select": lambda: kernels.select(*numbers),
    }


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
    """What the plugin launches when a server with one head of each kind and two members starts."""
    from cdserve.plugin.scorer import ValueScorer
    from cdserve.plugin.steerer import Steerer

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
    args = parser.parse_args()
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
