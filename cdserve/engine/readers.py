"""Readers of the worker's results: values, log-likelihoods and path KL, in shared tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cdserve.engine.prefill import TokenSequence, prefill
from cdserve.engine.vllm import EngineClient
from cdserve.errors import ScoringError
from cdserve.shared_table import SharedTable, Ticket

_VALUE_SLOTS = 65536
_SLOTS, _LENGTH = 16384, 16

Row = npt.NDArray[np.float32]


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


class LogLikelihoodReader(TableReader):
    """Reads log p of responses by model, in nats.

    Args:
        engine: prefills sequences that no request has drawn to their end.
        models: the columns of the table.
    """

    def __init__(self, engine: EngineClient, models: Sequence[str]) -> None:
        super().__init__(SharedTable(slots=_SLOTS, columns=max(1, len(models)), length=_LENGTH))
        self._engine = engine
        self._models = tuple(models)

    async def drawn(
        self, ticket: Ticket, sequence: TokenSequence, request_id: str
    ) -> Mapping[str, float]:
        """log p of the tokens that the ticket's request drew, from ``sequence.start`` on.

        log p of a token is known in the step after it. A response that ended has no such step: its
        last token is prefilled once more, behind its cached prefix.
        """
        end = len(sequence.token_ids)
        row = self._table.read(ticket, end)
        if row is None and end > sequence.start:
            previous = self._table.read(ticket, end - 1)
            if previous is not None:
                row = previous + (await self._sums(sequence, end - 1, request_id))[-1]
        if row is None:
            row = (await self._sums(sequence, sequence.start, request_id))[-1]
        return self._by_name(row, sequence)

    async def every(self, sequence: TokenSequence, request_id: str) -> list[Mapping[str, float]]:
        """log p of the tokens from ``sequence.start`` up to each of them."""
        rows = await self._sums(sequence, sequence.start, request_id)
        return [self._by_name(row, sequence) for row in rows]

    async def _sums(self, sequence: TokenSequence, start: int, request_id: str) -> list[Row]:
        """Sums of log p from token ``start`` on, one for each token."""
        length = len(sequence.token_ids) - start
        if length == 0:
            return [np.zeros(len(self._models), np.float32)]
        table = SharedTable(slots=1, length=length, columns=len(self._models))
        try:
            ticket = table.acquire()
            asked = replace(sequence.worker_request, loglik=ticket, loglik_start=start)
            for cached in (True, False):
                attempt = f"{request_id}.{start}.{int(cached)}"
                await prefill(self._engine, sequence, asked, attempt, cached=cached)
                ends = range(start + 1, start + length + 1)
                rows = [row for n in ends if (row := table.read(ticket, n)) is not None]
                if len(rows) == length:
                    return rows
        finally:
            table.close()
        raise ScoringError("the engine returned no log-likelihood for a text")

    def _by_name(self, row: Row, sequence: TokenSequence) -> Mapping[str, float]:
        models = sequence.worker_request.loglik_models
        return {model: float(row[self._models.index(model)]) for model in models}


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
