"""What the kernels compile to for a GPU that is not there: registers, stack, shared memory."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from value_heads.kernels import Mixture, PackedHeads, Tilt, operations

TARGETS = [80, 90]
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}
RUNTIME = ("num_warps", "num_stages")
"""Of a launch, and no arguments of the kernel."""


def resources() -> list[dict[str, Any]]:
    """A row for each kernel of each operation, compiled as the operation launches it."""
    return [
        {"operation": name, **compiled(kernel, arguments, target)}
        for name, call in calls().items()
        for kernel, arguments in launches(call)
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
    limited = replace(tilt, top_k=[20] * 64)
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
        "select": lambda: kernels.select(*numbers),
    }


@contextmanager
def recorded() -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """Kernels launched meanwhile, with their arguments by name; none of them runs."""
    seen: list[tuple[Any, dict[str, Any]]] = []

    def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        seen.append((kernel, dict(zip(kernel.arg_names, args, strict=False)) | named))

    with patch.object(triton.runtime.JITFunction, "run", launch):
        yield seen


def launches(call: Callable[[], Any]) -> list[tuple[Any, dict[str, Any]]]:
    """The kernels that an operation launches."""
    with recorded() as seen:
        call()
    return seen


def compiled(kernel: Any, arguments: dict[str, Any], target: int) -> dict[str, Any]:
    """What a kernel needs, compiled for a compute capability."""
    options = {name: arguments[name] for name in RUNTIME if name in arguments}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(i,)] = "constexpr", value
            continue
        signature[parameter.name] = _type(value)
        parts = enumerate(value) if isinstance(value, tuple) else [(None, value)]
        for j, part in parts:
            if not parameter.do_not_specialize and _divides(part):
                attributes[(i,) if j is None else (i, j)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [str(TOOL), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = {name: int(count) for name, count in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    return {
        "kernel": kernel.__name__,
        "compute capability": target / 10,
        "warps": options.get("num_warps", 4),
        "registers": found["REG"],
        "stack bytes": found["STACK"],
        "shared bytes": made.metadata.shared,
    }


def _type(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_type, value))
    return TYPES[value.dtype] if isinstance(value, Tensor) else "i32"


def _divides(value: Any) -> bool:
    return isinstance(value, Tensor) or value % 16 == 0
