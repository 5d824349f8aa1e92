"""Sums of log p in the worker, of requests that come one after the other into a slot."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from cdserve.shared_table import SharedTable
from cdserve.worker.likelihoods import Likelihoods
from cdserve.worker.readback import ReadBack
from cdserve.worker.request import WorkerRequest
from cdserve.worker.rows import RowTable

VOCABULARY = 11
LOGITS = torch.randn(64, VOCABULARY, generator=torch.Generator().manual_seed(0))
"""What follows each position, of every text."""


class Worker:
    """One slot, in which texts are read in chunks."""

    def __init__(self) -> None:
        self._back = ReadBack()
        self._rows = RowTable(slots=1)
        self._sums = Likelihoods(["base"], 1, True, self._back)

    def read(
        self, tokens: Sequence[int], since: int, chunks: Sequence[int], cached: int = 0
    ) -> list[float]:
        """The sums in the text's own table, of prefixes from ``since`` + 1 tokens on."""
        table = SharedTable(slots=1, columns=1, length=len(tokens) - since)
        try:
            ticket = table.acquire()
            request = WorkerRequest(loglik=ticket, loglik_start=since)
            length = len(tokens)
            self._rows.assign(0, request, prompt_length=length, tokens=length)
            before = cached
            for count in chunks:
                self._chunk(tokens, before, count)
                before += count
            self._back.flush(self._back.count)
            found = [table.read(ticket, n) for n in range(since + 1, len(tokens) + 1)]
            return [float(values[0]) for values in found if values is not None]
        finally:
            table.close()

    def _chunk(self, tokens: Sequence[int], before: int, count: int) -> None:
        one = np.array([0])
        self._rows.begin_step(one, one, np.array([before + count]), starts=np.array([0, count]))
        texts = self._rows.text_logprob_rows()
        assert texts is not None

        def logits(part: slice) -> dict[str, Tensor]:
            return {"base": LOGITS[before : before + count][part]}

        since, request = int(texts.loglik_start[0]), int(texts.requests[0])
        part = torch.tensor(tokens[before : before + count])
        self._sums.text(0, request, texts.destinations, since, before, part, logits)


def text(length: int, seed: int) -> list[int]:
    drawn = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))
    tokens: list[int] = drawn.tolist()
    return tokens


def sums(tokens: Sequence[int], since: int) -> list[float]:
    log_p = LOGITS.log_softmax(-1)
    added = [log_p[i - 1, tokens[i]] for i in range(since, len(tokens))]
    found: list[float] = torch.stack(added).cumsum(0).tolist()
    return found


@pytest.mark.parametrize("chunks", [[9], [4, 5], [3, 6], [5, 4], [1] * 9])
def test_sums_of_a_chunked_text_do_not_depend_on_its_slot(chunks: list[int]) -> None:
    """A chunk may end at the last token before those that are summed."""
    worker, tokens = Worker(), text(9, 2)
    worker.read(text(9, 1), 2, [9])
    assert worker.read(tokens, 4, chunks) == pytest.approx(sums(tokens, 4), abs=1e-5)


def test_cached_text_does_not_continue_another_of_the_same_length() -> None:
    """Each text has a table of its own, so the tickets of all have the same number.

    Without the logits behind its first token nothing is known of a text: it is read again.
    """
    worker, first, second = Worker(), text(8, 1), text(9, 2)
    assert worker.read(first, 7, [8]) == pytest.approx(sums(first, 7), abs=1e-5)
    assert worker.read(second, 8, [1], cached=8) == []
    assert worker.read(second, 8, [9]) == pytest.approx(sums(second, 8), abs=1e-5)
