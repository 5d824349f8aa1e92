"""What the plugin has Triton compile at the start is all that usual rows need later."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cdserve.shared_table import SharedTable
from cdserve.worker import model
from cdserve.worker.readback import ReadBack
from cdserve.worker.request import WorkerRequest
from cdserve.worker.rows import ROWS, PromptRows
from cdserve.worker.scorer import ValueScorer
from cdserve.worker.steerer import Steerer
from value_heads import HeadConfig, ValueHead

from .asking import Asking
from .test_steerer import KINDS, crowd, random_heads

WIDTH, BEHIND = 32, 16
MEMBERS = ("tuned", "ref")
Key = tuple[str, str, str]

compiled = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="only kernels that Triton compiles have variants",
)


@contextmanager
def launched() -> Iterator[set[Key]]:
    """The variants launched meanwhile, as Triton tells them apart on an H100; none of them runs."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    backend = make_backend(GPUTarget("cuda", 90, 32))
    seen: set[Key] = set()

    def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        _, specialisation, options = bind(*args, **named)
        seen.add((kernel.__name__, repr(specialisation), repr(options)))

    with patch.object(JITFunction, "run", launch):
        yield seen


class Step:
    """A step's tensors: logits with padding behind, hidden states with members' behind."""

    def __init__(self, batch: int, vocabulary: int, dtype: torch.dtype) -> None:
        padded = -(-vocabulary // 64) * 64
        self.logits = torch.randn(batch, padded).to(dtype)[:, :vocabulary]
        self.hidden = torch.randn(batch, WIDTH + BEHIND).to(dtype)[:, :WIDTH]
        self.lm_head = torch.randn(padded, WIDTH).to(dtype)
        self._behind = {
            name: torch.randn(batch, padded).to(dtype)[:, :vocabulary] for name in MEMBERS
        }
        self.ran = set(MEMBERS)
        self.asked = 0

    def members(self, rows: Tensor) -> Mapping[str, Tensor]:
        self.asked += 1
        return {name: z[rows] for name, z in self._behind.items() if name in self.ran}


def steered(
    steerer: Steerer, step: Step, rows: dict[int, WorkerRequest], temperature: float = 1.0
) -> None:
    """A step in which the members run that its rows ask for; every second row is greedy."""
    step.ran = {name for row in rows.values() for name in row.mix or ()} & set(MEMBERS)
    temperatures = {row: temperature * (row % 2) for row in rows}
    asking = Asking(steerer.columns, MEMBERS).steered(rows, temperatures=temperatures)
    steerer.steer(step.logits, step.hidden, asking, step.members, step.lm_head)


@compiled
@pytest.mark.parametrize("reports", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [128, 48, 53])
def test_warm_up_compiles_all_kinds_of_rows(
    tmp_path: Path, vocabulary: int, dtype: torch.dtype, reports: bool
) -> None:
    """In batches of one row, of every kind at once, and of one kind in tiles of each size."""
    paths = random_heads(tmp_path, WIDTH, vocabulary)
    cpu, back = torch.device("cpu"), ReadBack()
    steerer = Steerer(paths, cpu, vocabulary, 128, reports, True, MEMBERS, back)
    step = Step(96, vocabulary, dtype)
    with launched() as warm:
        made = steerer.warm_up(step.logits, step.hidden, step.members, step.lm_head)
    assert made
    # Reporting or not: all workers of a model in parts compute these, once a number of rows.
    assert step.asked == 4
    table = SharedTable(slots=2 * len(KINDS), columns=2, length=4)
    try:
        for temperature, budget in ((1.0, 0.4), (0.7, None)):
            every = crowd([table.acquire() for _ in KINDS], budget)
            # A batch of one has no padding behind: its row may have any stride.
            batches = [{place % 3: row} for place, row in every.items()]
            batches += [every, dict(list(every.items())[::2]), dict(list(every.items())[1::3])]
            batches += [
                dict.fromkeys(range(2, 2 + rows), row)
                for row in every.values()
                for rows in (16, 17, 40, 94)
            ]
            for rows in batches:
                with launched() as met:
                    steered(steerer, step, rows, temperature)
                assert met
                assert met <= warm
    finally:
        table.close()


@compiled
@pytest.mark.parametrize(
    ("members", "rows", "variants"),
    [
        ((), 96, 3),
        ((), 32, 2),
        ((), 17, 2),
        ((), 16, 1),
        ((), 1, 1),
        (MEMBERS, 96, 8),
        (MEMBERS, 1, 4),
    ],
)
def test_warm_up_compiles_all_variants_of_steering(
    tmp_path: Path, members: tuple[str, ...], rows: int, variants: int
) -> None:
    """A tilt has one for each tile that a batch can fill, twice with members; a mixture has two."""
    paths = random_heads(tmp_path, WIDTH, 128)[:1]
    steerer = Steerer(paths, torch.device("cpu"), 128, 96, True, True, members)
    step = Step(rows, 128, torch.float32)
    with launched() as warm:
        steerer.warm_up(step.logits, step.hidden, step.members, step.lm_head)
    assert sum(name == "_steer_kernel" for name, *_ in warm) == variants
    assert len(warm) == variants + 4, "top k, its statistics, chunks joined, KL charged"


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A saved MLP that needs both kernels of scoring."""
    config = HeadConfig(
        architecture="mlp",
        rewards=("a", "b"),
        hidden_size=WIDTH,
        mlp_width=80,
        shift=(0.0, 0.0),
        scale=(1.0, 1.0),
        base_model="any",
    )
    ValueHead(config).save_pretrained(tmp_path / "head")
    return tmp_path / "head"


@compiled
@pytest.mark.parametrize("behind", [0, 16, 5])
def test_warm_up_compiles_scoring(head: Path, behind: int) -> None:
    """Whether members ran or not, of single rows and whole prompts."""
    scorer = ValueScorer([str(head)], torch.device("cpu"), True)
    states = torch.zeros(40, WIDTH + behind, dtype=torch.bfloat16)
    with launched() as warm:
        assert scorer.warm_up(states[:, :WIDTH]) == (2 if behind % 16 else 1)
    table = SharedTable(slots=1, columns=2, length=64)
    row = WorkerRequest(values=table.acquire())
    asking = Asking()
    try:
        for hidden in (states[:, :WIDTH], states[:, :WIDTH].contiguous(), states[:1, :WIDTH]):
            with launched() as met:
                due = asking.step({0: row}, 1).values
                assert due is not None
                scorer.score_last(hidden, due)
                for starts in ([0, len(hidden)], [0, 1, len(hidden)]):
                    one, row_of = np.array([1]), np.array([len(starts) - 2])
                    wanted = {
                        "index": row_of,
                        "slots": one,
                        "tokens": one,
                        "token_stats_start": one,
                    }
                    wanted |= {"response_starts": one, "token_stats_start": one, "wanted": one}
                    spans = PromptRows(**wanted, requests=one, destinations=due.destinations)
                    scorer.score_every(hidden, spans, np.array(starts))
            assert met
            assert met <= warm
    finally:
        table.close()


class _Logits(nn.Module):
    """In place of the architecture: logits are the hidden states."""

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return hidden


class _Model(model._Aligned, _Logits):
    def __init__(self, steerer: Steerer, scorer: ValueScorer, cold: bool) -> None:
        nn.Module.__init__(self)
        self._steerer, self._values, self._token_stats = (steerer,), (scorer,), None
        self._width, self._cold = WIDTH, cold
        self.members = SimpleNamespace(logits=lambda behind: {"tuned": behind})  # type: ignore[assignment]


@compiled
@pytest.mark.parametrize("cold", [True, False])
def test_memory_profile_run_warms_the_model_up(
    tmp_path: Path, head: Path, cold: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, before the table of rows is used, and the logits stay as they are."""
    device = torch.device("cpu")
    paths = random_heads(tmp_path, WIDTH, WIDTH)[:1]
    made = _Model(
        Steerer(paths, device, WIDTH, 32, True, True, ("tuned",)),
        ValueScorer([str(head)], device, True),
        cold,
    )
    states = torch.randn(20, 2 * WIDTH)
    before = states.clone()
    with launched() as warm, caplog.at_level("INFO", "vllm.cdserve"):
        logits = made.compute_logits(states)
    assert torch.equal(logits, before[:, :WIDTH])
    assert torch.equal(states, before)
    assert {name for name, *_ in warm} == (
        {
            "_score_kernel",
            "_sum_kernel",
            "_steer_kernel",
            "_chosen_kernel",
            "_measure_kernel",
            "_join_kernel",
            "_charge_kernel",
        }
        if cold
        else set()
    )
    assert not ROWS._armed
    said = [record.getMessage() for record in caplog.records]
    assert [text.startswith("kernels for 8 kinds of rows were compiled in") for text in said] == (
        [True] * cold
    )
    with launched() as again:
        made.compute_logits(states)
    assert not again
