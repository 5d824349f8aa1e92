"""Runs batches of every kind of row in an engine of this process, and writes what came of them.

``python -m tests.v2.run OUT.json [--heads] [--synchronous] [--graphs MODE ...]``, on model runner
V1, or on V2 in the environment of ``tests.v2.mode``.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .engine import Engine
from .kinds import HEADS, MEMBERS, Kind
from .mode import is_on

SEED = 5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--heads", action="store_true", help="no members, no log p")
    parser.add_argument("--synchronous", action="store_true", help="no asynchronous scheduling")
    parser.add_argument("--graphs", nargs="*", default=[], help="modes of CUDA graphs")
    known = parser.parse_args()
    kinds = HEADS if known.heads else {**HEADS, **MEMBERS}
    flags = ["--no-async-scheduling"] if known.synchronous else []
    with Engine(members=not known.heads, flags=flags) as engine:
        made = {"engine": engine.described(), **_runs(engine, kinds)}
        # All of one step, the last before the dummy batch; the first row's tokens come first.
        texts = {name: kind for name, kind in kinds.items() if not kind.cached and kind.length < 99}
        made["dummy batch"] = engine.dummy_batch(texts)
        made["graphs"] = {mode: _under_graphs(engine, kinds, mode) for mode in known.graphs}
    known.out.write_text(json.dumps(made))


def _runs(engine: Engine, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    # vLLM's V1 on a CPU dies of a prompt with a seed that it computes in chunks.
    seed = SEED if is_on() else None
    engine.forget()
    return {"first": engine.run(kinds, seed), "cached": engine.run(kinds, seed)}


def _by_the_token(engine: Engine, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    short = {name: kind for name, kind in kinds.items() if kind.length <= 40}
    engine.forget()
    with engine.one_token_a_step():
        return engine.run(short, SEED)


def _under_graphs(engine: Engine, kinds: Mapping[str, Kind], mode: str) -> dict[str, Any]:
    from .graphs import CUDAGraphMode, emulated

    with emulated(engine.worker.model_runner, CUDAGraphMode[mode]) as counted:
        made = _runs(engine, kinds)
        if mode != "PIECEWISE":  # a FULL graph takes a chunk of one token for a step that draws
            made["by the token"] = _by_the_token(engine, kinds)
    return {**made, "counted": asdict(counted)}


if __name__ == "__main__":
    main()
