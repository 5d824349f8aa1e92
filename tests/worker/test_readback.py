"""A step's results are in the table before its output is read, and no step waits for them."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from cdserve.shared_table import SharedTable, Ticket
from cdserve.worker import worker
from cdserve.worker.readback import ReadBack
from cdserve.worker.request import RowTilt, WorkerRequest
from cdserve.worker.steerer import Steerer

from .asking import Asking
from .test_steerer import HIDDEN, P, none, q_head

CPU = torch.device("cpu")
TILT = RowTilt({0: 1.0}, None)


@pytest.fixture
def back(monkeypatch: pytest.MonkeyPatch) -> ReadBack:
    """That of a worker of its own."""
    made = ReadBack()
    monkeypatch.setattr(worker, "READ_BACK", made)
    return made


@pytest.fixture
def table() -> Iterator[SharedTable]:
    table = SharedTable(slots=4, columns=2, length=16)
    yield table
    table.close()


class Later(AsyncModelRunnerOutput):  # type: ignore[misc]
    """An output that notes when it is read."""

    def __init__(self, seen: list[Any]) -> None:
        self._seen = seen

    def get_output(self) -> ModelRunnerOutput:
        self._seen.append("output")
        return SimpleNamespace()


def put(back: ReadBack, seen: list[Any], *numbers: float) -> None:
    for number in numbers:
        back.submit(torch.tensor([number]), lambda made: seen.append(float(made[0])))


def test_results_arrive_with_the_output_of_their_step(back: ReadBack) -> None:
    """The next step has put its own by the time that the first output is read."""
    seen: list[Any] = []
    put(back, seen, 1, 2)
    first = worker.with_results(Later(seen))
    put(back, seen, 3)
    second = worker.with_results(Later(seen))
    assert seen == []
    first.get_output()
    assert seen == ["output", 1, 2]
    second.get_output()
    assert seen == ["output", 1, 2, "output", 3]


def test_finished_output_is_read_after_its_results(back: ReadBack) -> None:
    seen: list[Any] = []
    put(back, seen, 1)
    assert worker.with_results(None) is None  # the step goes on to its sampler
    assert seen == []
    output = SimpleNamespace()
    assert worker.with_results(output) is output
    assert seen == [1]


async def test_results_of_several_threads_keep_their_order(back: ReadBack) -> None:
    """Outputs are read in one thread while a preempted request comes back in another."""
    seen: list[Any] = []
    for step in range(200):
        put(back, seen, step)
        reading = asyncio.to_thread(back.flush, back.count)
        if step % 3 == 0:
            back.flush(back.count)
        await reading
    assert seen == list(range(200))


def test_worker_extends_the_worker_of_the_platform() -> None:
    from vllm.v1.worker.cpu_worker import CPUWorker

    assert issubclass(worker.Worker, CPUWorker)
    with pytest.raises(AttributeError):
        worker.Other  # noqa: B018


@pytest.mark.parametrize("behind", [False, True])
def test_path_kl_does_not_depend_on_the_time_of_reading(
    tmp_path: Path, table: SharedTable, behind: bool
) -> None:
    """A row without a budget, in some steps beside one that has one."""
    folder = q_head(tmp_path, lambda tokens: 2.0 * tokens[-1], "lowrank")
    generator = torch.Generator().manual_seed(0)
    back = ReadBack()
    steerer, asking = (
        Steerer([str(folder)], CPU, len(P), 2, reports=True, back=back),
        Asking(prompt_length=2),
    )
    free, bounded = table.acquire(), table.acquire()
    rows = [
        WorkerRequest(tilt=TILT, path_kl=free),
        WorkerRequest(tilt=TILT, path_kl=bounded, kl_budget=0.5),
    ]
    spent = [0.0]
    for tokens in range(2, 8):
        some = asking.steered(dict(enumerate(rows[:1] if tokens % 3 else rows)), tokens)
        before = torch.randn(2, len(P), generator=generator)
        made = steerer.steer(before.clone(), HIDDEN[:2].cpu(), some, none, None)
        log_p, log_q = made[0].log_softmax(-1), before[0].log_softmax(-1)
        spent.append(spent[-1] + float((log_p.exp() * (log_p - log_q)).sum()))
        if not behind:
            back.flush(back.count)
            assert path_of(table, free, tokens + 1) == pytest.approx(spent[-1], abs=1e-5)
    back.flush(back.count)
    for tokens in range(2, 8):
        found = path_of(table, free, tokens + 1)
        assert found == pytest.approx(spent[tokens - 1], abs=1e-5)
    assert path_of(table, bounded, 7) <= 0.5


def path_of(table: SharedTable, ticket: Ticket, tokens: int) -> float:
    """KL along the path to the prefix of so many tokens."""
    found = table.read(ticket, tokens)
    assert found is not None
    return float(np.asarray(found)[0])
