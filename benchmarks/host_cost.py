"""What cdserve adds to a step of the engine on the host: its Python and its calls of torch.

    python benchmarks/host_cost.py

No kernel runs: Triton's launches are left out and matrices are tiny, so that what is left is what
the host does before it can launch the next one. A step is what model runner V2 calls: the batch is
laid out, the rows that ask are found, their values scored, their logits steered. What the thread
that sends the step's output does later, handing results over to the server, is shown apart.

Every kind and size takes its turn in every round; a figure is the median over the rounds, in
microseconds.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from cdserve.shared_table import SharedTable
from cdserve.worker import runner_v2
from cdserve.worker.readback import ReadBack
from cdserve.worker.request import RowTilt, WorkerRequest
from cdserve.worker.rows import ROWS
from cdserve.worker.scorer import ValueScorer
from cdserve.worker.steerer import Steerer
from cdserve.worker.token_stats import TokenStats
from value_heads import HeadConfig, QHead, ValueHead

TILT = RowTilt({0: 5.0}, None)
MIX = {"base": 1.0, "tuned": 0.5, "ref": -0.5}
KINDS: dict[str, list[dict[str, Any]]] = {
    "nothing": [{}],
    "values, none due": [{"value_length": 1 << 40}],
    "values, all due": [{}],
    "tilt": [{"tilt": TILT}],
    "mix": [{"mix": MIX}],
    "mix and tilt": [{"mix": MIX, "tilt": TILT}],
    "all of these": [{"tilt": TILT}, {"mix": MIX}, {"mix": MIX, "tilt": TILT}],
    "tilt, top k": [{"tilt": RowTilt({0: 5.0}, 2)}],
    "tilt, budget": [{"tilt": TILT, "kl_budget": 1e9}],
    "log-likelihood": [{}],
}
"""What the rows of a batch ask, row by row in turn."""
PROMPT, AT = 32, 40
"""Tokens of every prompt, and of every prefix in the measured step."""
WIDTH, VOCABULARY, RANK = 2, 4, 1
MEMBERS = ("tuned", "ref")
MODELS = ("base", *MEMBERS)
CPU = torch.device("cpu")


class _Model:
    """The base of the state that model runner V2 has for a model."""

    def add_request(self, slot: int, request: Any) -> None: ...

    def preprocess_state(self, batch: Any) -> None: ...


class _State(runner_v2._Tracking, _Model):
    """Tells the row table of each step."""


class Batch:
    """So many rows of one kind, in a worker with a value head, a Q-head and two members."""

    def __init__(self, kind: str, rows: int, folder: Path) -> None:
        self._back = ReadBack()
        self._scorer = ValueScorer([str(folder / "v")], CPU, True, self._back)
        self._steerer = Steerer(
            [str(folder / "q")], CPU, VOCABULARY, rows, True, True, MEMBERS, self._back
        )
        self._token_stats = TokenStats(MODELS, rows, True, self._back)
        self._hidden = torch.zeros(rows, WIDTH)
        self._logits = torch.zeros(rows, VOCABULARY)
        self._last = torch.zeros(rows, dtype=torch.long)
        self._tables = [SharedTable(slots=rows, columns=n, length=16) for n in (1, 2, len(MODELS))]
        self._state: Any = _State()
        self._batch = SimpleNamespace(
            idx_mapping_np=np.arange(rows),
            num_computed_tokens_np=np.full(rows, AT - 1, np.int32),
            num_scheduled_tokens=np.ones(rows, np.int32),
            prefill_len_np=np.full(rows, PROMPT, np.int32),
            query_start_loc_np=np.arange(rows + 1, dtype=np.int32),
        )
        self._requests = [self._request(kind, i) for i in range(rows)]

    def close(self) -> None:
        """Removes the tables."""
        for table in self._tables:
            table.close()

    def enter(self) -> None:
        """The requests take their slots; the row table is this batch's from now on."""
        ROWS.resize(len(self._requests), self._steerer.columns, MEMBERS, MODELS)
        for slot, request in enumerate(self._requests):
            self._state.add_request(slot, request)

    def step(self) -> tuple[float, float]:
        """Seconds on the step's own path, and handing its results over."""
        begun = time.perf_counter()
        self._state.preprocess_state(self._batch)
        ROWS.prompt_value_rows()
        ROWS.members()
        valued, steered, drawing, _ = ROWS.take_step()
        if valued is not None:
            self._scorer.score_last(self._hidden, valued)
        if drawing is not None:
            logits = {name: self._logits for name in MODELS}
            self._token_stats.step(drawing, self._last, logits)
        if steered is not None:
            self._steerer.steer(self._logits, self._hidden, steered, self._members, None)
        launched = time.perf_counter()
        self._back.flush(self._back.count)
        return launched - begun, time.perf_counter() - launched

    def _members(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: self._logits[: len(rows)] for name in MEMBERS}

    def _request(self, kind: str, row: int) -> Any:
        asked = KINDS[kind][row % len(KINDS[kind])]
        values, path_kl, stats = self._tables
        steered = "tilt" in asked or "mix" in asked
        request = WorkerRequest(path_kl=path_kl.acquire() if steered else None, **asked)
        if kind.startswith("values"):
            length = request.value_length or AT
            request = replace(request, value_length=length, values=values.acquire())
        if kind == "log-likelihood":
            request = replace(request, token_stats=stats.acquire(), token_stats_names=MODELS)
        extra = None if request == WorkerRequest() else request.added_to(None)
        params = SimpleNamespace(extra_args=extra, temperature=0.7, top_k=0, top_p=1.0, min_p=0.0)
        ids = [1] * PROMPT
        return SimpleNamespace(sampling_params=params, prompt_len=PROMPT, prefill_token_ids=ids)


@contextmanager
def heads() -> Iterator[Path]:
    """A folder with a value head ``v`` and a Q-head ``q``."""
    common: dict[str, Any] = {"hidden_size": WIDTH, "rewards": ("r",), "base_model": "any"}
    common |= {"shift": (0.0,), "scale": (1.0,)}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        ValueHead(HeadConfig(architecture="linear", **common)).save_pretrained(folder / "v")
        low_rank = HeadConfig(architecture="lowrank", rank=RANK, vocab_size=VOCABULARY, **common)
        QHead(low_rank).save_pretrained(folder / "q")
        yield folder


def costs(sizes: list[int], rounds: int, steps: int) -> list[dict[str, Any]]:
    """A row for each kind, with the microseconds of each size."""
    with heads() as folder, patch.object(JITFunction, "run", lambda *_, **__: None):
        batches = {(kind, n): Batch(kind, n, folder) for kind in KINDS for n in sizes}
        found: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in batches}
        for _ in range(rounds):
            for key, batch in batches.items():
                batch.enter()
                batch.step()
                found[key].append(tuple(np.median([batch.step() for _ in range(steps)], axis=0)))
        for batch in batches.values():
            batch.close()
    return [{"kind": kind, **{str(n): _median(found[kind, n]) for n in sizes}} for kind in KINDS]


def _median(seconds: list[tuple[float, float]]) -> dict[str, float]:
    step, handed_over = np.median(seconds, axis=0) * 1e6
    return {"step": round(float(step), 1), "flush": round(float(handed_over), 1)}


def main() -> None:
    """Prints the table; ``--json`` one row a line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="a round")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = costs(asked.sizes, asked.rounds, asked.steps)
    if asked.json:
        print("\n".join(map(json.dumps, rows)))
        return
    print("| all rows | " + " | ".join(f"{n} rows" for n in asked.sizes) + " |")
    print("|---|" + "---|" * len(asked.sizes))
    for row in rows:
        cells = [f"{row[str(n)]['step']:.0f} ({row[str(n)]['flush']:.0f})" for n in asked.sizes]
        print(f"| {row['kind']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
