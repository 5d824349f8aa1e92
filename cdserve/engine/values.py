"""Values of prefixes, as the engine's value heads give them."""

from collections.abc import AsyncIterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from cdserve.engine.vllm import (
    EngineClient,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    VLLMValidationError,
    tokens_input,
)
from cdserve.errors import ScoringError
from cdserve.launch.heads import Heads
from cdserve.shared_table import Ticket, ValueTable
from cdserve.worker.request import REQUEST_KEY

_SLOTS = 65536


def wanting(extra_args: Mapping[str, Any] | None, **wanted: object) -> dict[str, Any]:
    """``extra_args`` of an engine request of which the worker is to know more.

    Args:
        extra_args: those so far.
        wanted: what ``plugin.request`` reads: ``values`` and ``length``, ``tilt`` and ``path``.
    """
    given = dict(extra_args or {})
    return {**given, REQUEST_KEY: {**given.get(REQUEST_KEY, {}), **wanted}}


async def one_token(
    engine: EngineClient,
    token_ids: Sequence[int],
    extra_args: dict[str, Any],
    request_id: str,
    cache_salt: str | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    cached: bool = True,
    prompt_logprobs: int | None = None,
) -> RequestOutput:
    """Runs a given text through the engine, for what the worker writes on the way.

    Args:
        options: what else the engine is given (LoRA, rank, priority).
        cached: whether what the prefix cache has of it may be left out.
        prompt_logprobs: alternatives to each of the text's tokens whose log-probabilities are
            returned, as in vLLM's ``SamplingParams``. None for no log-probabilities.
    """
    params = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        detokenize=prompt_logprobs is not None,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=extra_args,
        prompt_logprobs=prompt_logprobs,
        skip_reading_prefix_cache=not cached,
    )
    prompt = tokens_input(list(token_ids), cache_salt=cache_salt)
    return await final(engine.generate(prompt, params, request_id, **(options or {})))


async def final(outputs: AsyncIterable[RequestOutput]) -> RequestOutput:
    """The last output of an engine request."""
    last: RequestOutput | None = None
    async for output in outputs:
        last = output
    assert last is not None  # vLLM ends every request with an output
    return last


class Values:
    """Reads V out of the engine, by reward name, in raw reward units.

    Args:
        engine: where prefixes are scored that no candidate's own row has.
        heads: which column of the table each reward reads.
    """

    def __init__(self, engine: EngineClient, heads: Heads) -> None:
        self._engine = engine
        self._heads = heads
        self._table = ValueTable(slots=_SLOTS, columns=max(1, heads.values.width))

    def ticket(self) -> AbstractContextManager[Ticket]:
        """A ticket for one engine request, given back at the end."""
        return self._table.ticket()

    def read(self, ticket: Ticket, length: int) -> Mapping[str, float] | None:
        """V of the prefix of ``length`` tokens of the ticket's request, if it was computed."""
        row = self._table.read(ticket, length)
        return None if row is None else self._named(row)

    async def last(
        self,
        token_ids: Sequence[int],
        request_id: str,
        cache_salt: str | None = None,
        steering: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Mapping[str, float]:
        """V of a whole sequence, by a one-token request on its (cached) prefix.

        Args:
            steering: of the requests whose cached prefix it is: where members write KV into that
                prefix, this request must have them write too.
            options: what else they gave the engine; another LoRA's states have other values.
        """
        with self.ticket() as ticket:
            wanted = wanting(
                None, **(steering or {}), values=ticket.to_wire(), length=len(token_ids)
            )
            await one_token(self._engine, token_ids, wanted, request_id, cache_salt, options)
            values = self.read(ticket, len(token_ids))
        if values is None:
            raise ScoringError("the engine computed no value for a prefix that asked for one")
        return values

    async def every(
        self, token_ids: Sequence[int], start: int, request_id: str
    ) -> list[Mapping[str, float]]:
        """V of the prefixes of ``start + 1`` to ``len(token_ids)`` tokens."""
        table = ValueTable(slots=1, length=len(token_ids) + 1, columns=self._heads.values.width)
        try:
            ticket = table.acquire()
            wanted = wanting(None, values=ticket.to_wire(), length=None)
            await one_token(self._engine, token_ids, wanted, request_id, cached=False)
            rows = [table.read(ticket, n) for n in range(start + 1, len(token_ids) + 1)]
        finally:
            table.close()
        known = [self._named(row) for row in rows if row is not None]
        if len(known) < len(rows):
            raise ScoringError("the engine computed no value for a prefix that asked for one")
        return known

    def _named(self, row: npt.NDArray[np.float32]) -> Mapping[str, float]:
        return {name: float(row[column]) for name, column in self._heads.values.columns.items()}

    def close(self) -> None:
        """Removes the shared table."""
        self._table.close()


def refuse_reserved(params: SamplingParams) -> None:
    """Raises if a client wrote cdserve's own key into ``vllm_xargs``."""
    if REQUEST_KEY in (params.extra_args or {}):
        raise VLLMValidationError(
            f"vllm_xargs.{REQUEST_KEY} is reserved; use the field 'alignment'",
            parameter=f"vllm_xargs.{REQUEST_KEY}",
        )
