"""Requests that ask the worker for something, and the steps in which they are met."""

from collections.abc import Mapping, Sequence

import numpy as np

from cdserve.worker.request import WorkerRequest
from cdserve.worker.rows import RowTable, SteeredRows, Step


class Asking:
    """A row table in which each request's slot is its row of the batch."""

    def __init__(
        self,
        columns: int = 1,
        members: Sequence[str] = (),
        slots: int = 128,
        prompt_length: int = 1,
        statistics: Sequence[str] = (),
    ) -> None:
        self.table = RowTable(slots, columns, members, statistics)
        self._prompt_length = prompt_length
        self._asked: dict[int, WorkerRequest] = {}

    def step(
        self,
        rows: Mapping[int, WorkerRequest],
        tokens: int,
        temperatures: Mapping[int, float] | None = None,
    ) -> Step:
        """A step of these rows, whose prefixes all have ``tokens`` tokens."""
        for slot, request in rows.items():
            if self._asked.get(slot) is not request:
                self.table.assign(
                    slot,
                    request,
                    prompt_length=self._prompt_length,
                    temperature=(temperatures or {}).get(slot, 1.0),
                    tokens=tokens,
                )
                self._asked[slot] = request
        index = np.array(list(rows))
        self.table.begin_step(index, index, np.full(len(index), tokens))
        return self.table.take_step()

    def steered(
        self,
        rows: Mapping[int, WorkerRequest],
        tokens: int = 1,
        temperatures: Mapping[int, float] | None = None,
    ) -> SteeredRows:
        """The steered rows of a step; there must be some."""
        found = self.step(rows, tokens, temperatures).steered
        assert found is not None
        return found
