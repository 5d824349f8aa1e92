"""The hot path on a GPU: time of each kernel beside what it must move, eager and compiled.

Each row has the operation's floor (`kernel_floors.py`), the median time of the kernel
with a cold L2 cache, the share of the device's measured copy bandwidth that the floor's bytes in
that time are, and how many times as long eager PyTorch and `torch.compile` take. Without a GPU the
floors and what the kernels compile to can be had.

    python benchmarks/kernels.py --output benchmarks/results/kernels.json
    python benchmarks/kernels.py --floors --output benchmarks/results/kernel_floors.json
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import kernel_floors as floors
import torch
import triton
from kernel_resources import resources
from torch import Tensor
from triton.testing import do_bench, do_bench_cudagraph

from value_heads.kernels import BatchMixture, BatchTilt, PackedHeads, operations

ROWS = [1, 8, 64, 256, 1024]
VOCABULARIES = [32_000, 128_256, 152_064]
OUTPUTS = [1, 4, 8]
MODELS = [2, 3, 4]
RANK, WIDTH, MLP_WIDTH = 64, 4096, 1024
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOMINAL = {"H100 SXM": 3.35e12, "H200": 4.8e12}
"""Bytes a second by their data sheets; what a copy reaches is less."""
LLAMA_3_8B = 8_030_261_248
"""Parameters, in bfloat16 read once a decode step."""


class Case(NamedTuple):
    """An operation at a size."""

    operation: str
    size: dict[str, int]
    floor: floors.Floor


def cases() -> Iterator[Case]:
    """All operations at all sizes."""
    for n, g in itertools.product(ROWS, OUTPUTS):
        size = {"rows": n, "width": WIDTH, "outputs": g}
        yield Case("score", size, floors.score(n, WIDTH, g, weighted=True))
        floor = floors.score(n, WIDTH, g, mlp_width=MLP_WIDTH, weighted=True)
        yield Case("score, MLP", {**size, "mlp_width": MLP_WIDTH}, floor)
    for v, n, g in itertools.product(VOCABULARIES, ROWS, OUTPUTS):
        size = {"rows": n, "vocabulary": v, "rank": RANK, "outputs": g}
        yield Case("tilt", size, floors.tilt(n, v, RANK, g))
    for v, n, k in itertools.product(VOCABULARIES, ROWS, MODELS):
        yield Case("mix", {"rows": n, "vocabulary": v, "models": k}, floors.mix(n, v, k))


def mix_and_tilt(rows: int, vocabulary: int, models: int, rank: int, outputs: int) -> floors.Floor:
    """The floor of both in one launch: logits, index and statistics are moved once."""
    mixing = floors.mix(rows, vocabulary, models)
    tilting = floors.tilt(rows, vocabulary, rank, outputs, measured=False)
    twice = rows * (2 * 4 * vocabulary + 8)
    return floors.Floor(mixing.bytes + tilting.bytes - twice, mixing.flops + tilting.flops)


def floor_of(case: Case) -> dict[str, Any]:
    """A row of the table, without any time."""
    us = {f"us at {name}": case.floor.seconds(rate) * 1e6 for name, rate in NOMINAL.items()}
    return {
        "operation": case.operation,
        **case.size,
        "bytes": case.floor.bytes,
        "flops": case.floor.flops,
        **{name: round(found, 3) for name, found in us.items()},
    }


def decode_step(rows: int = 256, vocabulary: int = 128_256) -> dict[str, Any]:
    """What the operations add to a decode step of an 8B model, as shares of its weights' bytes."""
    weights = 2 * LLAMA_3_8B
    added = {
        "score, 8 linear": floors.score(rows, WIDTH, 8).bytes,
        "tilt, 1 reward": floors.tilt(rows, vocabulary, RANK, 1).bytes,
        "tilt, 8 rewards": floors.tilt(rows, vocabulary, RANK, 8).bytes,
        "mix, 3 models": floors.mix(rows, vocabulary, 3).bytes,
    }
    shares = {name: round(count / weights, 5) for name, count in added.items()}
    return {"rows": rows, "bytes of the weights": weights, "share": shares}


def statistics(before: Tensor, after: Tensor) -> list[Tensor]:
    """Eager PyTorch's, of two tensors of logits [n, |V|]."""
    log_p, log_pi = before.log_softmax(-1), after.log_softmax(-1)
    pi = log_pi.exp()
    return [
        before.logsumexp(-1),
        after.logsumexp(-1),
        (pi * (log_pi - log_p)).sum(-1),
        -(pi * log_pi).sum(-1),
    ]


def eager_tilt(factors: Tensor, tokens: Tensor, logits: Tensor, rows: Tensor) -> list[Tensor]:
    """As one writes it in PyTorch, of u [n, G r] and B^T [G r, |V|]."""
    before = logits[rows]
    after = torch.addmm(before, factors, tokens)
    logits[rows] = after
    return statistics(before, after)


def eagerly_mixed(mixture: BatchMixture, base: Tensor) -> Tensor:
    """sum_i w_i z_i."""
    mixed = mixture.weights[:, :1] * base
    for i, member in enumerate(mixture.members):
        mixed = mixed + mixture.weights[:, i + 1 : i + 2] * member
    return mixed


def eager_mix(mixture: BatchMixture, logits: Tensor, rows: Tensor) -> list[Tensor]:
    """As one writes it in PyTorch."""
    before = logits[rows]
    after = eagerly_mixed(mixture, before)
    logits[rows] = after
    return statistics(before, after)


def eager_both(
    mixture: BatchMixture, factors: Tensor, tokens: Tensor, logits: Tensor, rows: Tensor
) -> list[Tensor]:
    """As one writes it in PyTorch."""
    before = logits[rows]
    after = torch.addmm(eagerly_mixed(mixture, before), factors, tokens)
    logits[rows] = after
    return statistics(before, after)


def eager_score(hidden: Tensor, rows: Tensor, heads: PackedHeads, weights: Tensor) -> list[Tensor]:
    """As one writes it in PyTorch, of linear heads or one MLP."""
    raw = torch.addmm(heads.first_bias, hidden[rows].float(), heads.first.T)
    if not heads.linear:
        raw = torch.nn.functional.gelu(raw) @ heads.second.T
    values = heads.shift + heads.scale * (raw + heads.bias)
    return [values, (weights * values).sum(-1)]


def packed(width: int, outputs: int, mlp_width: int) -> PackedHeads:
    """Random heads."""
    units = mlp_width or outputs
    random = partial(torch.randn, device=DEVICE)
    none, one = torch.zeros(outputs, device=DEVICE), torch.ones(outputs, device=DEVICE)
    return PackedHeads(
        first=random(units, width) / width**0.5,
        first_bias=torch.zeros(units, device=DEVICE),
        gelu=torch.full((units,), float(mlp_width > 0), device=DEVICE),
        second=random(outputs, units) / units**0.5 if mlp_width else one.diag(),
        bias=none,
        sigmoid=none,
        shift=none,
        scale=one,
        hidden_units=mlp_width,
    )


class Arms(NamedTuple):
    """What is compared, on the same inputs."""

    kernel: Callable[[], Any]
    eager: Callable[[], Any]
    compiled: Callable[[], Any]


def arms(case: Case) -> Arms:
    """The kernel, eager PyTorch and compiled, on fresh inputs of the case's size.

    Twice as many rows are in memory as are worked on, in an order of their own.
    """
    size, kernels = case.size, operations(True)
    n = size["rows"]
    rows = torch.randperm(2 * n, device=DEVICE)[:n]
    if case.operation.startswith("score"):
        hidden = torch.randn(2 * n, size["width"], device=DEVICE, dtype=torch.bfloat16)
        heads = packed(size["width"], size["outputs"], size.get("mlp_width", 0))
        weights = torch.randn(n, size["outputs"], device=DEVICE)
        return _arms(kernels.score, eager_score, hidden, rows, heads, weights)
    logits = torch.randn(2 * n, size["vocabulary"], device=DEVICE)
    asked: dict[str, Any] = {}
    given: list[Any] = []
    if "models" in size:
        asked["mixture"] = mixture_of(n, size["vocabulary"], size["models"])
        given.append(asked["mixture"])
    if "outputs" in size:
        asked["tilt"] = tilt_of(n, size["vocabulary"], size["outputs"])
        (u,), (b,) = asked["tilt"].factors, asked["tilt"].tokens
        given += [u.flatten(1), b.transpose(1, 2).flatten(0, 1)]
    eager = {"tilt": eager_tilt, "mix": eager_mix, "mix and tilt": eager_both}[case.operation]
    return _arms(partial(kernels.steer, **asked), partial(eager, *given), logits, rows)


def tilt_of(rows: int, vocabulary: int, outputs: int) -> BatchTilt:
    """A random one. It is small: the logits are tilted again and again."""
    u = 1e-4 * torch.randn(rows, outputs, RANK, device=DEVICE)
    b = torch.randn(outputs, vocabulary, RANK, device=DEVICE)
    return BatchTilt(factors=(u,), tokens=(b,))


def mixture_of(rows: int, vocabulary: int, models: int) -> BatchMixture:
    """Of random members' logits, equal weights."""
    random = partial(torch.randn, rows, vocabulary, device=DEVICE, dtype=torch.bfloat16)
    members = tuple(random() for _ in range(models - 1))
    weights = torch.full((rows, models), 1 / models, device=DEVICE)
    return BatchMixture(members=members, weights=weights, vocabulary=vocabulary)


def _arms(kernel: Callable[..., Any], eager: Callable[..., Any], *inputs: Any) -> Arms:
    """Check and name them; a partial's own arguments come before the inputs."""
    _check(kernel, eager, inputs)
    if isinstance(eager, partial):
        compiled: Callable[..., Any] = partial(_compiled(eager.func), *eager.args)
    else:
        compiled = _compiled(eager)
    return Arms(partial(kernel, *inputs), partial(eager, *inputs), partial(compiled, *inputs))


@cache
def _compiled(eager: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(eager)


def _check(kernel: Callable[..., Any], eager: Callable[..., Any], inputs: Sequence[Any]) -> None:
    """Refuse to time what is wrong."""
    found = []
    for arm in (kernel, eager):
        fresh = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
        results = arm(*fresh)
        found.append([*([results] if isinstance(results, Tensor) else results), fresh[0]])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def median_us(arm: Callable[[], Any]) -> float:
    """Median of the time in microseconds, the L2 cache cold."""
    return 1e3 * float(do_bench(arm, warmup=50, rep=200, return_mode="median"))


def graph_us(arm: Callable[[], Any]) -> float:
    """Median of the time in microseconds in replays of a CUDA graph, the L2 cache warm."""
    with torch.cuda.stream(torch.cuda.Stream()):
        return 1e3 * float(do_bench_cudagraph(arm, rep=50, return_mode="median"))


def copy_bandwidth() -> float:
    """Bytes a second that a copy of 2 GiB reads and writes."""
    source = torch.empty(2**31, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * 2**31 / (1e-6 * median_us(lambda: target.copy_(source)))


def measured(case: Case, bandwidth: float) -> dict[str, Any]:
    """A row of the table."""
    made = arms(case)
    times = {name: median_us(arm) for name, arm in made._asdict().items()}
    kernel = times["kernel"]
    return {
        **floor_of(case),
        "us": times,
        "us in a graph": graph_us(made.kernel),
        "floor us": case.floor.seconds(bandwidth) * 1e6,
        "share of copy bandwidth": case.floor.bytes / (kernel * 1e-6) / bandwidth,
        "eager over kernel": times["eager"] / kernel,
        "compiled over kernel": times["compiled"] / kernel,
    }


def run(chosen: Sequence[Case]) -> dict[str, Any]:
    """Time everything on the GPU."""
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    made: dict[str, Any] = {
        "machine": f"{torch.cuda.get_device_name()}; torch {torch.__version__}, "
        f"triton {triton.__version__}, CUDA {torch.version.cuda}",
        "copy bandwidth, bytes/s": bandwidth,
        "decode step": decode_step(),
        "results": [],
    }
    for case in chosen:
        made["results"].append(measured(case, bandwidth))
        print(json.dumps(made["results"][-1]), flush=True)
    return made


def table(chosen: Sequence[Case]) -> dict[str, Any]:
    """What can be had without a GPU: floors, and what the kernels compile to."""
    made = {"decode step": decode_step(), "compiled": list(resources())}
    return {**made, "floors": [floor_of(case) for case in chosen]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--floors", action="store_true", help="no times; needs no GPU")
    parser.add_argument("--operation", help="of this name alone")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    chosen = [case for case in cases() if args.operation in (None, case.operation)]
    if args.floors:
        results = table(chosen)
        for row in [*results["compiled"], *results["floors"]]:
            print(json.dumps(row))
    elif torch.cuda.is_available():
        results = run(chosen)
    else:
        parser.error("times need a GPU; --floors needs none")
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
