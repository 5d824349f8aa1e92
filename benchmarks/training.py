"""Training on cached states: tokens per second and peak memory, at 1M tokens and at ten times that.

Random states in shards on disk, read through `value_heads.fit` by a process of its own for every
run: one epoch of a linear head and of a low-rank Q-head of rank 64. Prints medians over rounds.

    python benchmarks/training.py --rounds 3 --output benchmarks/results/training.json
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from value_heads import CachedRollouts, FitOptions, HeadConfig, QHead, ShardWriter, ValueHead, fit

LENGTH = 200
HIDDEN = 512
VOCABULARY = 32000
HEADS = ("linear", "lowrank")


def write(folder: Path, tokens: int) -> None:
    """Responses of ``LENGTH`` tokens with random states in bfloat16; a few more are held out."""
    torch.manual_seed(0)
    for name, count in (("train", tokens // LENGTH), ("validation", 20)):
        writer = ShardWriter(folder, name)
        for prompt in tqdm(range(count), f"{name}, {tokens} tokens"):
            states = torch.randn(LENGTH + 1, HIDDEN, dtype=torch.bfloat16)
            ids = torch.randint(VOCABULARY, (LENGTH,))
            writer.add(states, ids, ended=True, prompt=prompt)
        writer.flush()


def child(kind: str, folder: Path, tokens: int) -> None:
    """One epoch; prints its figures as JSON."""
    imported = _peak()
    config: dict[str, Any] = {
        "rewards": ("r",),
        "hidden_size": HIDDEN,
        "shift": (0.0,),
        "scale": (1.0,),
        "base_model": "random",
    }
    if kind == "linear":
        head: ValueHead | QHead = ValueHead(HeadConfig(architecture="linear", **config))
    else:
        config |= {"rank": 64, "vocab_size": VOCABULARY}
        head = QHead(HeadConfig(architecture="lowrank", **config))
    sets = [
        CachedRollouts(folder, name, torch.randn(count, 1))
        for name, count in (("train", tokens // LENGTH), ("validation", 20))
    ]
    started = time.perf_counter()
    fit(head, sets[0], sets[1], options=FitOptions(max_epochs=1))
    seconds = time.perf_counter() - started
    figures = {"tokens_per_second": tokens / seconds, "peak_mib": _peak(), "imports_mib": imported}
    print(json.dumps(figures))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(kind: str, folder: Path, tokens: int) -> dict[str, float]:
    """One epoch in a process of its own."""
    command = [sys.executable, __file__, "--child", kind, str(folder), str(tokens)]
    made = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    figures: dict[str, float] = json.loads(made.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, folder, tokens = args.child
        child(kind, Path(folder), int(tokens))
        return
    table: dict[str, Any] = {}
    for tokens in (args.tokens, 10 * args.tokens):
        folder = Path(tempfile.mkdtemp(prefix="cdserve-bench-"))
        try:
            write(folder, tokens)
            rounds = [
                {kind: run(kind, folder, tokens) for kind in HEADS} for _ in range(args.rounds)
            ]
        finally:
            shutil.rmtree(folder)
        for kind in HEADS:
            made = {
                name: statistics.median(figures[kind][name] for figures in rounds)
                for name in rounds[0][kind]
            }
            table.setdefault(kind, {})[str(tokens)] = made
            print(
                f"{kind:8s} {tokens:>9d} tokens: {made['tokens_per_second']:9.0f} tokens/s, peak "
                f"{made['peak_mib']:.0f} MiB, of which imports {made['imports_mib']:.0f}",
                flush=True,
            )
    if args.output:
        from models import machine  # brings vLLM, which has no part in what is measured

        sizes = {"hidden_size": HIDDEN, "vocab_size": VOCABULARY, "rank": 64, "length": LENGTH}
        made = {"machine": machine(), "rounds": args.rounds, **sizes, "heads": table}
        args.output.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
