"""Readers of the worker's results: values, statistics of tokens and path KL, in shared tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cdserve.engine.prefill import TokenSequence, prefill
from cdserve.engine.vllm import EngineClient
from cdserve.errors import ScoringError
from cdserve.shared_table import SharedTable, TablePool, Ticket

_VALUE_SLOTS = 65536
_SLOTS, _LENGTH = 16384, 16

Row = npt.NDArray[np.float32]
Rows = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


class TableReader:
    """Owns a table and hands out tickets for rows of it.

    Args:
        table: created by the reader's class; removed by ``close``.
    """

    def __init__(self, table: SharedTable) -> None:
        self._table = table

    def ticket(self) -> AbstractContextManager[Ticket]:
        """A ticket for one engine request, returned at the end of the context."""
        return self._table.ticket()

    def close(self) -> None:
        """Removes the table."""
        self._table.close()


class ValueReader(TableReader):
    """Reads V of prefixes by reward name, in reward units.

    Args:
        engine: scores prefixes that no candidate's own row covers.
        columns: the table column of each reward.
        width: columns of the table, one for each output of the value heads.
    """

    def __init__(self, engine: EngineClient, columns: Mapping[str, int], width: int) -> None:
        super().__init__(SharedTable(slots=_VALUE_SLOTS, columns=max(1, width)))
        self._repeated = SharedTable(slots=_SLOTS, columns=max(1, width), length=_LENGTH)
        self._engine = engine
        self._columns = columns
        self._width = width

    @contextmanager
    def repeated(self, every: int) -> Iterator[Ticket]:
        """A ticket for V of every ``every`` tokens, of which the last few are kept."""
        with self._repeated.ticket() as ticket:
            # The row of a prefix is its length modulo the number of rows.
            rows = next(n for n in range(_LENGTH, 0, -1) if math.gcd(n, every) == 1)
            yield replace(ticket, length=rows)

    def close(self) -> None:
        super().close()
        self._repeated.close()

    def read(self, ticket: Ticket, length: int) -> Mapping[str, float] | None:
        """V of the prefix of ``length`` tokens of the ticket's request; None if not computed."""
        table = self._repeated if ticket.path == self._repeated.path else self._table
        row = table.read(ticket, length)
        return None if row is None else self._by_name(row)

    def latest(self, ticket: Ticket, least: int) -> Mapping[str, float] | None:
        """V of the last prefix that was written, if it has at least ``least`` tokens."""
        row = self._table.read_from(ticket, least)
        return None if row is None else self._by_name(row)

    async def last(self, sequence: TokenSequence, request_id: str) -> Mapping[str, float]:
        """V of a whole sequence, from a one-token request behind its cached prefix.

        Raises:
            ScoringError: the engine computed no value.
        """
        length = len(sequence.token_ids)
        with self.ticket() as ticket:
            asked = replace(sequence.worker_request, values=ticket, value_length=length)
            await prefill(self._engine, sequence, asked, request_id)
            values = self.read(ticket, length)
        if values is None:
            raise self._missing(length)
        return values

    async def every(self, sequence: TokenSequence, request_id: str) -> list[Mapping[str, float]]:
        """V of each prefix of more than ``sequence.start`` tokens.

        Raises:
            ScoringError: the engine computed no value for some prefix.
        """
        length = len(sequence.token_ids)
        table = SharedTable(slots=1, length=length + 1, columns=self._width)
        try:
            ticket = table.acquire()
            asked = replace(sequence.worker_request, values=ticket)
            await prefill(self._engine, sequence, asked, request_id, cached=False)
            rows = {n: table.read(ticket, n) for n in range(sequence.start + 1, length + 1)}
        finally:
            table.close()
        values = []
        for n, row in rows.items():
            if row is None:
                raise self._missing(n)
            values.append(self._by_name(row))
        return values

    def _by_name(self, row: Row) -> Mapping[str, float]:
        return {name: float(row[column]) for name, column in self._columns.items()}

    def _missing(self, length: int) -> ScoringError:
        return ScoringError(
            f"the engine returned no value of {', '.join(self._columns)} for the prefix of "
            f"{length} tokens"
        )


class TokenStatsReader:
    """Reads statistics of the tokens of responses, by the names of ``worker.token_stats``.

    Args:
        engine: prefills sequences that no request has drawn to their end.
        names: the columns of the tables.
    """

    def __init__(self, engine: EngineClient, names: Sequence[str]) -> None:
        self._tables = TablePool(columns=max(1, len(names)))
        self._engine = engine
        self._names = tuple(names)

    def ticket(self, length: int) -> AbstractContextManager[Ticket]:
        """A ticket for an engine request that draws up to ``length`` tokens."""
        return self._tables.ticket(length)

    def close(self) -> None:
        """Removes the tables."""
        self._tables.close()

    async def drawn(
        self, ticket: Ticket, sequence: TokenSequence, request_id: str
    ) -> Mapping[str, Floats]:
        """Statistics of the tokens that the ticket's request drew, from ``sequence.start`` on.

        Those of a token are known in the step after it. A response that ended has no such step, and
        a preempted one lacks one: what is missing is prefilled once more, behind its cached prefix.
        """
        start, token_ids = sequence.start, sequence.token_ids
        rows, known = self._tables.read_span(ticket, start + 1, len(token_ids))
        if len(missing := np.flatnonzero(~known)):
            first, end = int(missing[0]), int(missing[-1]) + 1
            part = replace(sequence, token_ids=token_ids[: start + end], start=start + first)
            rows[first:end] = await self._read(part, request_id)
        return self._by_name(rows, sequence)

    async def every(self, sequence: TokenSequence, request_id: str) -> Mapping[str, Floats]:
        """Statistics of the tokens from ``sequence.start`` on."""
        return self._by_name(await self._read(sequence, request_id), sequence)

    async def _read(self, sequence: TokenSequence, request_id: str) -> Rows:
        """Rows of the tokens from ``sequence.start`` on, ``[n, columns]``."""
        start, end = sequence.start, len(sequence.token_ids)
        if start == end:
            return np.zeros((0, len(self._names)), np.float32)
        with self._tables.ticket(end - start) as ticket:
            asked = replace(sequence.worker_request, token_stats=ticket, token_stats_start=start)
            for cached in (True, False):
                attempt = f"{request_id}.{start}.{int(cached)}"
                await prefill(self._engine, sequence, asked, attempt, cached=cached)
                rows, known = self._tables.read_span(ticket, start + 1, end)
                if known.all():
                    return rows
        raise ScoringError("the engine returned no statistics of the tokens of a text")

    def _by_name(self, rows: Rows, sequence: TokenSequence) -> Mapping[str, Floats]:
        names = sequence.worker_request.token_stats_names
        return {name: rows[:, self._names.index(name)].astype(np.float64) for name in names}


class PathKLReader(TableReader):
    """Reads the KL divergence along the paths of steered requests, in nats."""

    def __init__(self) -> None:
        super().__init__(SharedTable(slots=_SLOTS, columns=2, length=_LENGTH))

    def read(self, ticket: Ticket, length: int) -> tuple[float, int]:
        """KL of the steps up to the prefix of ``length`` tokens, and those left unsteered.

        If the engine has drawn so many tokens since that the entry was overwritten, the entry of
        the shortest longer prefix is returned: an upper bound.

        Raises:
            ScoringError: the engine reported no KL, or one that is not finite.
        """
        row = self._table.read_from(ticket, length)
        if row is None:
            raise ScoringError("the engine reported no KL for a request that it steered")
        kl, unsteered = float(row[0]), int(row[1])
        if not math.isfinite(kl):
            raise ScoringError(
                f"the KL of a steered request is {kl}: the model, a member or a Q-head produced "
                "values that are not finite"
            )
        return kl, unsteered
