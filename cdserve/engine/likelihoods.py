"""Log-likelihoods of responses, as the engine sums them while it draws, or for a text."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cdserve.engine.values import one_token, wanting
from cdserve.engine.vllm import EngineClient
from cdserve.errors import ScoringError
from cdserve.shared_table import Ticket, ValueTable

_SLOTS, _LENGTH = 16384, 16

Sums = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A prompt with a response, and what its log-likelihoods are read with.

    Attributes:
        token_ids: of both.
        start: how many are the prompt's, or of an earlier part of the response.
        cache_salt: of the prefix cache that it may be in.
        steering: of the requests that drew it; its ``models`` are those wanted.
        options: what else they gave the engine.
    """

    token_ids: Sequence[int]
    start: int
    cache_salt: str | None
    steering: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)


class Likelihoods:
    """Reads log p of responses out of the engine, by model, in nats.

    Args:
        engine: where a text is read that no request has drawn to its end.
        models: the worker's columns.
    """

    def __init__(self, engine: EngineClient, models: Sequence[str]) -> None:
        self._engine = engine
        self._models = tuple(models)
        self._table = ValueTable(slots=_SLOTS, columns=max(1, len(models)), length=_LENGTH)

    def ticket(self) -> AbstractContextManager[Ticket]:
        """A ticket for one engine request, given back at the end."""
        return self._table.ticket()

    async def drawn(self, ticket: Ticket, text: Text, request_id: str) -> Mapping[str, float]:
        """log p of what the ticket's request drew, from the text's start to its end.

        The step after a token is the one that knows its log p, and one that ended a response has
        none: that token is read once more, behind its cached prefix.
        """
        end = len(text.token_ids)
        found = self._table.read(ticket, end)
        if found is None and end > text.start:
            before = self._table.read(ticket, end - 1)
            if before is not None:
                found = before + (await self._read(text, end - 1, request_id))[-1]
        if found is None:
            found = (await self._read(text, text.start, request_id))[-1]
        return self._named(found, text)

    async def every(self, text: Text, request_id: str) -> list[Mapping[str, float]]:
        """log p of the response up to each of its tokens."""
        found = await self._read(text, text.start, request_id)
        return [self._named(row, text) for row in found]

    async def _read(self, text: Text, since: int, request_id: str) -> list[Sums]:
        """Sums from ``since`` on, one a token."""
        length = len(text.token_ids) - since
        if length == 0:
            return [np.zeros(len(self._models), np.float32)]
        table = ValueTable(slots=1, length=length, columns=len(self._models))
        try:
            ticket = table.acquire()
            for cached in (True, False):
                wanted = {"ticket": ticket.to_wire(), "since": since}
                await one_token(
                    self._engine,
                    text.token_ids,
                    wanting(None, **text.steering, likelihood=wanted),
                    f"{request_id}.{since}.{int(cached)}",
                    text.cache_salt,
                    text.options,
                    cached=cached,
                )
                ends = range(since + 1, since + length + 1)
                rows = [row for n in ends if (row := table.read(ticket, n)) is not None]
                if len(rows) == length:
                    return rows
        finally:
            table.close()
        raise ScoringError("the engine computed no log-likelihood for a text that asked for it")

    def _named(self, row: Sums, text: Text) -> Mapping[str, float]:
        return {name: float(row[self._models.index(name)]) for name in text.steering["models"]}

    def close(self) -> None:
        """Removes the shared table."""
        self._table.close()
