"""Statistics of tokens in the worker, of texts that come one after the other into a slot."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cdserve.shared_table import SharedTable
from cdserve.worker.readback import ReadBack
from cdserve.worker.request import WorkerRequest
from cdserve.worker.rows import RowTable
from cdserve.worker.token_stats import TokenStats

VOCABULARY = 11
NAMES = ("base", "base.negative_entropy", "base.self_certainty", "base.top_3")
LOGITS = torch.randn(64, VOCABULARY, generator=torch.Generator().manual_seed(0))
"""What follows each position, of every text."""


class Worker:
    """One slot, in which texts are read in chunks."""

    def __init__(self) -> None:
        self._back = ReadBack()
        self._rows = RowTable(slots=1, statistics=NAMES)
        self._stats = TokenStats(NAMES, 1, True, self._back)

    def read(
        self, tokens: Sequence[int], since: int, chunks: Sequence[int], cached: int = 0
    ) -> list[list[float]]:
        """The statistics of the tokens from ``since`` on that are in the text's own table."""
        table = SharedTable(slots=1, columns=len(NAMES), length=len(tokens) - since)
        try:
            ticket = table.acquire()
            request = WorkerRequest(
                token_stats=ticket, token_stats_start=since, token_stats_names=NAMES
            )
            length = len(tokens)
            self._rows.assign(0, request, prompt_length=length, tokens=length)
            before = cached
            for count in chunks:
                self._chunk(tokens, before, count)
                before += count
            self._back.flush(self._back.count)
            rows, known = table.read_span(ticket, since + 1, len(tokens))
            read: list[list[float]] = rows[known].tolist()
            return read
        finally:
            table.close()

    def _chunk(self, tokens: Sequence[int], before: int, count: int) -> None:
        one = np.array([0])
        self._rows.begin_step(one, one, np.array([before + count]), starts=np.array([0, count]))
        texts = self._rows.text_stat_rows()
        assert texts is not None

        def logits(part: slice) -> dict[str, Tensor]:
            return {"base": LOGITS[before : before + count][part]}

        since, request = int(texts.token_stats_start[0]), int(texts.requests[0])
        part, wanted = torch.tensor(tokens[before : before + count]), texts.wanted[0]
        self._stats.text(0, request, texts.destinations, since, before, part, logits, wanted)


def text(length: int, seed: int) -> list[int]:
    drawn = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed))
    tokens: list[int] = drawn.tolist()
    return tokens


def expected(tokens: Sequence[int], since: int) -> list[Any]:
    """The statistics by their formulas, token by token."""
    log_p = LOGITS.double().log_softmax(-1)
    rows = [(log_p[i - 1], tokens[i]) for i in range(since, len(tokens))]
    return [
        pytest.approx(
            [
                float(of[token]),
                float((of.exp() * of).sum()),
                -float((VOCABULARY * of.exp()).log().mean()),
                -float(of.sort().values[-3:].mean()),
            ],
            abs=1e-5,
        )
        for of, token in rows
    ]


@pytest.mark.parametrize("chunks", [[9], [4, 5], [3, 6], [5, 4], [1] * 9])
def test_statistics_of_a_chunked_text_do_not_depend_on_its_slot(chunks: list[int]) -> None:
    """A chunk may end at the last token before those with statistics."""
    worker, tokens = Worker(), text(9, 2)
    worker.read(text(9, 1), 2, [9])
    assert worker.read(tokens, 4, chunks) == expected(tokens, 4)


def test_cached_text_does_not_continue_another_of_the_same_length() -> None:
    """Each text has a table of its own, so the tickets of all have the same number.

    Without the logits before it nothing is known of a token: it is read again.
    """
    worker, first, second = Worker(), text(8, 1), text(9, 2)
    assert worker.read(first, 7, [8]) == expected(first, 7)
    assert worker.read(second, 8, [1], cached=8) == []
    assert worker.read(second, 8, [9]) == expected(second, 8)
