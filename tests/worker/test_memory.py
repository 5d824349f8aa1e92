"""The memory that steering and log-likelihoods take, by the formulas of docs/kernels.md.

The largest batches and vocabularies are tried, and nothing is computed: torch's device "meta" keeps
the shapes of tensors alone.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cdserve.shared_table import Ticket
from cdserve.worker.readback import ReadBack
from cdserve.worker.request import RowTilt, WorkerRequest
from cdserve.worker.rows import PromptRows
from cdserve.worker.scorer import ValueScorer
from cdserve.worker.steerer import Steerer
from cdserve.worker.tickets import Destinations
from cdserve.worker.token_stats import TokenStats
from value_heads import HeadConfig, QHead, ValueHead

from .asking import Asking

jit = pytest.importorskip("triton.runtime.jit", reason="the kernels' own tensors count")
META, WIDTH, RANK = torch.device("meta"), 64, 4
MEMBERS = ("tuned", "ref")
GIB = 2**30


class Peak(TorchDispatchMode):  # type: ignore[misc]
    """The most bytes alive at once of tensors made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, call: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {StorageWeakRef(t.untyped_storage()).cdata for t in tensors((args, kwargs))}
        made = call(*args, **(kwargs or {}))
        for tensor in tensors(made):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference.cdata not in given:  # no view, and not in place
                self._alive[reference.cdata] = reference, storage.nbytes()
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()))
        return made


class Dropped(ReadBack):
    """Drops results: the device "meta" has none to copy."""

    def submit(self, result: Tensor, deliver: object) -> None:
        """Does nothing."""


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def steerer(folder: Path, rows: int, vocabulary: int) -> Steerer:
    config = HeadConfig(
        architecture="lowrank",
        rewards=("r",),
        hidden_size=WIDTH,
        rank=RANK,
        vocab_size=vocabulary,
        shift=(0.0,),
        scale=(1.0,),
        base_model="any",
    )
    QHead(config).save_pretrained(folder)
    return Steerer([str(folder)], META, vocabulary, rows, False, True, MEMBERS, ReadBack())


def steering(asked: Mapping[str, Any], rows: int, vocabulary: int, folder: Path) -> int:
    """Bytes at the peak of a step in which every row asks so."""
    made = steerer(folder, rows, vocabulary)
    ticket = Ticket("/path", 1, 0, 16)
    asking = Asking(1, MEMBERS, rows).steered(
        dict.fromkeys(range(rows), WorkerRequest(path_kl=ticket, **asked))
    )
    logits = torch.empty(rows, vocabulary, dtype=torch.bfloat16, device=META)
    hidden = torch.empty(rows, WIDTH, dtype=torch.bfloat16, device=META)

    def members(index: Tensor) -> dict[str, Tensor]:
        return {name: logits.new_empty(len(index), vocabulary) for name in MEMBERS}

    with patch.object(jit.JITFunction, "run", lambda *_, **__: None), Peak() as peak:
        made.steer(logits, hidden, asking, members, None)
    return peak.bytes


TILT = RowTilt({0: 1.0}, None)
MIX = {"base": 1.0, "tuned": 0.5, "ref": 0.5}
ASKED: dict[str, tuple[dict[str, Any], int]] = {
    "tilt": ({"tilt": TILT}, 0),
    "mix": ({"mix": MIX}, 1),
    "mix and tilt": ({"mix": MIX, "tilt": TILT}, 1),
    "budget": ({"tilt": TILT, "kl_budget": 1.0}, 3),
    "all": ({"mix": MIX, "tilt": RowTilt({0: 1.0}, 50), "kl_budget": 1.0}, 4),
}
"""With the float32 copies of a launch's rows that are alive at once, members' two of half its size
counted as one."""


@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize(("rows", "vocabulary"), [(1024, 262_144), (1024, 32_000), (256, 128_256)])
def test_steering_memory_stays_within_its_bound(
    kind: str, rows: int, vocabulary: int, tmp_path: Path
) -> None:
    asked, copies = ASKED[kind]
    found = steering(asked, rows, vocabulary, tmp_path)
    launched = min(rows, max(64, 2**28 // (4 * vocabulary)))
    bound = 4 * vocabulary * (rows + copies * launched)
    assert 0.9 * 4 * vocabulary * rows <= found <= 1.05 * bound
    assert found <= 2.01 * GIB


@pytest.mark.parametrize(
    "names",
    [
        ("base",),
        ("base", *MEMBERS),
        ("base", "base.negative_entropy", "base.self_certainty", "base.top_20"),
    ],
)
@pytest.mark.parametrize(("rows", "vocabulary"), [(1024, 262_144), (256, 128_256)])
def test_memory_of_token_statistics_stays_within_its_bound(
    names: tuple[str, ...], rows: int, vocabulary: int
) -> None:
    """The logits kept for the next step, and float32 copies of 256 rows."""
    models = [name for name in names if "." not in name]
    made = TokenStats(names, rows, False)
    asking = Asking(1, MEMBERS, rows, statistics=names)
    request = WorkerRequest(token_stats=Ticket("/sums", 1, 0, 16), token_stats_names=names)
    logits = {
        name: torch.empty(rows, vocabulary, dtype=torch.bfloat16, device=META) for name in models
    }
    last = torch.empty(rows, dtype=torch.int32, device=META)
    with Peak() as peak:
        made.warm_up(logits)
        measured = peak.bytes
        for tokens in (1, 2):
            drawing = asking.step(dict.fromkeys(range(rows), request), tokens).token_stats
            assert drawing is not None
            made.step(drawing, last, logits)
    kept = 2 * rows * len(models) * vocabulary
    assert kept <= peak.bytes <= 1.01 * (kept + 2.5 * 4 * 256 * vocabulary)
    assert peak.bytes <= 1.01 * measured, "vLLM measures less than a step takes"


@pytest.mark.parametrize("position_limit", [None, 256])
@pytest.mark.parametrize("tokens", [1, 1024, 1025, 16_384])
def test_scoring_a_whole_prompt_takes_the_memory_of_a_tile(
    tmp_path: Path, tokens: int, position_limit: int | None
) -> None:
    width, units = 4096, 2048
    config = HeadConfig(
        architecture="mlp",
        rewards=("r",),
        hidden_size=width,
        mlp_width=units,
        position_limit=position_limit,
        shift=(0.0,),
        scale=(1.0,),
        base_model="any",
    )
    ValueHead(config).save_pretrained(tmp_path)
    scorer = ValueScorer([str(tmp_path)], META, False, Dropped())
    one = np.ones(1, np.int64)
    rows = PromptRows(
        index=0 * one,
        slots=0 * one,
        tokens=tokens * one,
        response_starts=0 * one,
        token_stats_start=0 * one,
        requests=one,
        destinations=Destinations(-one, one, one, one),
        wanted=one > 0,
    )
    hidden = torch.empty(tokens, width, dtype=torch.bfloat16, device=META)
    with Peak() as peak:
        scorer.warm_up(hidden)
        measured = peak.bytes
        scorer.score_every(hidden, rows, np.array([0, tokens]))
    indices_and_values = 2 * (8 + 8 + 4) * tokens
    assert peak.bytes <= measured + indices_and_values
    inputs = 1 if position_limit is None else 2  # in float32: the states, and with the position
    assert measured <= 1.01 * 1024 * (2 * width + inputs * 4 * width + 3 * 4 * units)
