"""Candidates from the engine: K requests that continue the accepted prefix by token ids."""

import asyncio
import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cdserve.decoders import Candidate, Score
from cdserve.engine.response import cumulative_logprob
from cdserve.engine.steering import Paths
from cdserve.engine.values import Values, wanting
from cdserve.engine.vllm import (
    CompletionOutput,
    EngineClient,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    TokenizerLike,
    detokenizer,
    tokens_input,
)
from cdserve.scoring import Objective, Response
from cdserve.value_table import Ticket


class Stopped(Exception):
    """The engine ended a candidate from outside: an abort, or an error of its own."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class EngineProposal:
    """One response being decoded: the prompt, the accepted tokens, and where the next come from.

    Args:
        engine: vLLM's engine.
        values: reads V out of it.
        objective: the request's rewards.
        prompt: prompt token ids.
        prompt_text: the prompt, for rewards that read text.
        messages: a chat request's, for the same.
        params: the client's sampling parameters; ``max_tokens`` bounds the whole response.
        request_id: candidates' ids begin with it.
        choice: index of the response among the request's ``n``.
        reads_text: whether candidates' text is wanted, beside what the objective needs.
        options: what else goes to the engine with every candidate (LoRA, priority, tracing).
        paths: reads the KL of steered candidates out of the engine.
        steering: what the worker is told of the distribution to draw tokens from.
    """

    def __init__(
        self,
        *,
        engine: EngineClient,
        values: Values,
        objective: Objective,
        tokenizer: TokenizerLike,
        prompt: Sequence[int],
        prompt_text: str,
        messages: Sequence[Mapping[str, Any]] | None,
        cache_salt: str | None,
        params: SamplingParams,
        request_id: str,
        choice: int,
        reads_text: bool,
        options: Mapping[str, Any],
        paths: Paths,
        steering: Mapping[str, Any],
    ) -> None:
        self._engine = engine
        self._values = values
        self._paths = paths
        self._steering = steering
        self._objective = objective
        self._tokenizer = tokenizer
        self._prompt_text = prompt_text
        self._messages = messages
        self._cache_salt = cache_salt
        self._params = params
        self._request_id = request_id
        self._choice = choice
        self._reads_text = reads_text or objective.reads_text or bool(params.stop)
        self._options = options
        self._prefix = list(prompt)
        self._text = ""
        self._left: int = params.max_tokens
        self._written = 0
        self._decisions = 0
        self.alive: set[str] = set()
        """Ids of the engine requests that run for it now."""
        self.first: RequestOutput | None = None
        """The very first candidate's output: it carries what was asked of the prompt."""

    async def sample(self, count: int, max_tokens: int | None) -> Sequence[Candidate]:
        """``count`` i.i.d. continuations, of at most ``max_tokens`` tokens, with their values.

        If one fails or this is cancelled, the engine drops them all.
        """
        length = self._left if max_tokens is None else min(max_tokens, self._left)
        decision, self._decisions = self._decisions, self._decisions + 1
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._candidate(length, decision, i)) for i in range(count)
                ]
        except* Exception as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def score(self, candidates: Sequence[Candidate]) -> Sequence[Score]:
        """The objective of the response so far followed by each candidate."""
        return await self._objective.score(
            [
                Response(
                    prompt=self._prompt_text,
                    text=self._text + candidate.text,
                    tokens=self._written + len(candidate.token_ids),
                    finished=candidate.finish_reason is not None,
                    values=candidate.values,
                    messages=self._messages,
                )
                for candidate in candidates
            ]
        )

    def accept(self, candidate: Candidate) -> None:
        """Appends the candidate to the prefix."""
        self._prefix.extend(candidate.token_ids)
        self._text += candidate.text
        self._written += len(candidate.token_ids)
        self._left -= len(candidate.token_ids)

    async def _candidate(self, length: int, decision: int, index: int) -> Candidate:
        request_id = f"{self._request_id}-{self._choice}.{decision}.{index}"
        first = decision == index == 0
        params = self._block_params(length, self._seed(decision, index), first)
        if not self._steering:
            return await self._valued(params, request_id, length, first)
        with self._paths.ticket() as path:
            params.extra_args = wanting(params.extra_args, **self._steering, path=path.to_wire())
            candidate = await self._valued(params, request_id, length, first)
            if not candidate.token_ids:
                return replace(candidate, kl=0.0)
            end = len(self._prefix) + len(candidate.token_ids)
            last = len(self._prefix) + params.max_tokens
            return replace(candidate, kl=self._paths.read(path, end, last))

    async def _valued(
        self, params: SamplingParams, request_id: str, length: int, first: bool
    ) -> Candidate:
        if not self._objective.reads_values:
            return self._read(await self._run(params, request_id, first), length)
        with self._values.ticket() as ticket:
            # One token more: the row that samples it is the one that knows V of the block's last.
            params.max_tokens = length + 1
            params.extra_args = wanting(
                params.extra_args, values=ticket.to_wire(), length=len(self._prefix) + length
            )
            candidate = self._read(await self._run(params, request_id, first), length)
            return await self._with_values(candidate, ticket, request_id)

    async def _with_values(
        self, candidate: Candidate, ticket: Ticket, request_id: str
    ) -> Candidate:
        values = self._values.read(ticket, len(self._prefix) + len(candidate.token_ids))
        if values is None:  # it ended: no later row has V of its last token
            token_ids = [*self._prefix, *candidate.token_ids]
            values = await self._values.last(
                token_ids, f"{request_id}.end", self._cache_salt, self._steering
            )
        return replace(candidate, values=values)

    async def _run(self, params: SamplingParams, request_id: str, first: bool) -> CompletionOutput:
        prompt = tokens_input(self._prefix.copy(), cache_salt=self._cache_salt)
        final: RequestOutput | None = None
        self.alive.add(request_id)
        try:
            async for output in self._engine.generate(prompt, params, request_id, **self._options):
                final = output
        finally:
            self.alive.discard(request_id)
        assert final is not None  # FINAL_ONLY: exactly one output
        if first:
            self.first = final
        if final.outputs[0].finish_reason in ("abort", "error"):
            raise Stopped(final.outputs[0].finish_reason)
        return final.outputs[0]

    def _read(self, output: CompletionOutput, length: int) -> Candidate:
        """The engine's output cut to ``length`` tokens, with stop strings that begin before it."""
        token_ids = list(output.token_ids)[:length]
        ended = output.finish_reason if len(output.token_ids) <= length else None
        # A stop string is looked for below, where the text before the block is known too.
        by_token = ended == "stop" and not isinstance(output.stop_reason, str)
        text, stop = "", None
        if self._reads_text:
            reader = detokenizer(self._tokenizer, self._prefix, self._read_params())
            reader.output_text = self._text
            stop = reader.update(token_ids, by_token)
            token_ids = list(reader.output_token_ids)
            text = reader.output_text[len(self._text) :]
        logprobs = None if output.logprobs is None else output.logprobs[: len(token_ids)]
        if by_token or stop is not None:
            finish_reason: str | None = "stop"
        elif ended == "repetition":
            finish_reason = ended
        else:
            finish_reason = "length" if len(token_ids) == self._left else None
        return Candidate(
            token_ids=tuple(token_ids),
            finish_reason=finish_reason,
            stop_reason=stop or (output.stop_reason if by_token else None),
            text=text,
            logprobs=logprobs,
            cumulative_logprob=cumulative_logprob(logprobs, token_ids)
            if logprobs is not None and _samples_raw(self._params)
            else None,
        )

    def _block_params(self, length: int, seed: int | None, first: bool) -> SamplingParams:
        params = copy.copy(self._params)
        params.n = 1
        params.seed = seed
        params.max_tokens = length
        # vLLM refuses a minimum above the maximum.
        params.min_tokens = min(max(0, self._params.min_tokens - self._written), length)
        params.output_kind = RequestOutputKind.FINAL_ONLY
        params.detokenize = bool(params.stop) or params.logprobs is not None
        params.skip_clone = True
        if not first:
            params.prompt_logprobs = None
        return params

    def _read_params(self) -> SamplingParams:
        params = copy.copy(self._params)
        params.min_tokens = max(0, self._params.min_tokens - self._written)
        return params

    def _seed(self, decision: int, index: int) -> int | None:
        """A seed of its own for every candidate; the very first has the request's."""
        seed: int | None = self._params.seed
        if seed is None or self._choice == decision == index == 0:
            return seed
        key = f"{seed}/{self._choice}/{decision}/{index}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")


def _samples_raw(params: SamplingParams) -> bool:
    """Whether tokens are drawn from the raw distribution, which is what vLLM's logprobs are of."""
    return (
        (params.temperature, params.top_p, params.min_p) == (1.0, 1.0, 0.0)
        and params.top_k in (0, -1)
        and (params.presence_penalty, params.frequency_penalty) == (0.0, 0.0)
        and params.repetition_penalty == 1.0
        and params.min_tokens == 0
        and not any(
            (
                params.logit_bias,
                params.allowed_token_ids,
                params.bad_words,
                params.structured_outputs,
            )
        )
    )
