"""Requests that ask the worker for something, and the steps in which they are met."""

from collections.abc import Mapping, Sequence

import numpy as np

from cdserve.worker.request import WorkerRequest
from cdserve.worker.rows import RowTable, Steered, Step


class Asking:
    """A row table in which each request's slot is its row of the batch."""

    def __init__(self, columns: int = 1, members: Sequence[str] = (), slots: int = 128) -> None:
        self.table = RowTable(slots, columns, members)
        self._asked: dict[int, WorkerRequest] = {}

    def step(self, rows: Mapping[int, WorkerRequest], tokens: int) -> Step:
        """A step of these rows, whose prefixes all have so many tokens."""
        for slot, request in rows.items():
            if self._asked.get(slot) is not request:
                self.table.put(slot, request, tokens)
                self._asked[slot] = request
        index = np.array(list(rows))
        self.table.begin(index, index, np.full(len(index), tokens))
        return self.table.take()

    def steered(self, rows: Mapping[int, WorkerRequest], tokens: int = 1) -> Steered:
        """Those of a step that are steered; there must be some."""
        found = self.step(rows, tokens).steered
        assert found is not None
        return found
