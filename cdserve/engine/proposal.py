"""Candidates from the engine: K requests that continue each prefix by token ids."""

import asyncio
import copy
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cdserve.decoders import Candidate, Prefix, Score
from cdserve.engine.deadline import ended_at_deadline
from cdserve.engine.likelihoods import Likelihoods, Text
from cdserve.engine.response import cumulative_logprob
from cdserve.engine.run import AlignmentRun
from cdserve.engine.slots import Slots
from cdserve.engine.steering import Paths
from cdserve.engine.values import Values, final, wanting
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
from cdserve.observability.metrics import GENERATE_SECONDS, SCORE_SECONDS
from cdserve.observability.tracing import ResponseSpans
from cdserve.scoring import Response
from cdserve.shared_table import Ticket


class Stopped(Exception):
    """The engine ended a candidate from outside: an abort, or an error of its own."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """Where a block begins."""

    token_ids: list[int]
    """The prompt and the response so far."""
    text: str
    """The response so far, where text is read."""
    left: int
    """Tokens that the response may still have."""
    length: int
    """Tokens that the block may have."""
    budget: float | None
    """Nats that its steering may cost."""


class EngineProposal:
    """One response being decoded: the prompt, and where its continuations come from.

    Args:
        engine: vLLM's engine.
        values: reads V out of it.
        run: the request's policy, with its rewards.
        prompt: prompt token ids.
        prompt_text: the prompt, for rewards that read text.
        messages: those of a chat request's, for rewards that read them.
        params: the client's sampling parameters; ``max_tokens`` bounds the whole response.
        engine_id: what candidates' ids begin with; no other request has it.
        choice: index of the response among the request's ``n``.
        options: what else goes to the engine with every candidate (LoRA, priority, tracing).
        paths: reads the KL of steered candidates out of the engine.
        likelihoods: reads log-likelihoods of candidates out of it.
        slots: what candidates wait for before they run.
        spans: of the response's trace.
    """

    def __init__(
        self,
        *,
        engine: EngineClient,
        values: Values,
        run: AlignmentRun,
        tokenizer: TokenizerLike,
        prompt: Sequence[int],
        prompt_text: str,
        messages: Sequence[Mapping[str, Any]] | None,
        cache_salt: str | None,
        params: SamplingParams,
        engine_id: str,
        choice: int,
        options: Mapping[str, Any],
        paths: Paths,
        likelihoods: Likelihoods,
        slots: Slots,
        spans: ResponseSpans,
    ) -> None:
        self._engine = engine
        self._slots = slots
        self._spans = spans
        self._values = values
        self._paths = paths
        self._likelihoods = likelihoods
        self._alignment = run
        self._objective = run.objective
        self._tokenizer = tokenizer
        self._prompt_text = prompt_text
        self._messages = messages
        self._cache_salt = cache_salt
        self._params = params
        self._engine_id = engine_id
        self._choice = choice
        trace = run.policy.report == "trace"
        self._reads_text = trace or run.objective.reads_text or bool(params.stop)
        self._options = options
        self._prompt = list(prompt)
        self._draws = 0
        self.alive: set[str] = set()
        """Ids of the engine requests that run for it now."""
        self.scored = time.perf_counter()
        """When prefixes were scored last, by ``time.perf_counter``."""
        self.first: RequestOutput | None = None
        """The very first candidate's output, which says how much of the prompt was cached."""

    @property
    def _given(self) -> dict[str, Any]:
        """What the engine is given with every request, beside prompt and parameters."""
        return {**self._options, **self._spans.options}

    @property
    def over(self) -> bool:
        """Whether the deadline has passed."""
        return self._alignment.over

    async def sample(
        self,
        prefixes: Sequence[Prefix],
        count: int,
        max_tokens: int | None,
        budget: float | None = None,
    ) -> Sequence[Candidate]:
        """``count`` i.i.d. continuations of each, of at most ``max_tokens`` tokens, with values.

        If one fails or this is cancelled, the engine drops them all. The deadline cuts them.
        """
        begun = [self._start(prefix, max_tokens, budget) for prefix in prefixes]
        starts = [start for start in begun for _ in range(count)]
        draw, self._draws = self._draws, self._draws + 1
        try:
            ended = ended_at_deadline(self._engine, self._alignment, self.alive)
            traced = self._spans.during("generate", candidates=len(starts))
            with GENERATE_SECONDS.time(), traced, ended:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._candidate(start, draw, i))
                        for i, start in enumerate(starts)
                    ]
        except* Exception as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        """The objective of each prefix."""
        with SCORE_SECONDS.time(), self._spans.during("score", candidates=len(prefixes)):
            responses = [await self._response(prefix) for prefix in prefixes]
            scores = await self._objective.score(responses, self._engine_id)
        self.scored = time.perf_counter()
        return scores

    async def _response(self, prefix: Prefix) -> Response:
        return Response(
            prompt=self._prompt_text,
            text="".join(candidate.text for candidate in prefix),
            tokens=sum(len(candidate.token_ids) for candidate in prefix),
            finished=bool(prefix) and prefix[-1].finish_reason is not None,
            values=prefix[-1].values if prefix else await self._prompt_values(),
            loglik={
                model: math.fsum(candidate.loglik[model] for candidate in prefix)
                for model in self._objective.models
            },
            messages=self._messages,
        )

    async def _prompt_values(self) -> Mapping[str, float]:
        if not self._objective.reads_values:
            return {}
        request_id = f"{self._engine_id}-{self._choice}.prompt"
        return await self._last(self._prompt, request_id)

    async def _last(self, token_ids: Sequence[int], request_id: str) -> Mapping[str, float]:
        """V of a text, read as the candidates' requests read it."""
        return await self._values.last(
            token_ids, request_id, self._cache_salt, self._alignment.steering, self._given
        )

    def _start(self, prefix: Prefix, max_tokens: int | None, budget: float | None) -> _Start:
        written = [token for candidate in prefix for token in candidate.token_ids]
        left = self._params.max_tokens - len(written)
        return _Start(
            token_ids=[*self._prompt, *written],
            text="".join(candidate.text for candidate in prefix),
            left=left,
            length=left if max_tokens is None else min(max_tokens, left),
            budget=budget,
        )

    async def _candidate(self, start: _Start, draw: int, index: int) -> Candidate:
        request_id = f"{self._engine_id}-{self._choice}.{draw}.{index}"
        params = self._block_params(start, self._seed(draw, index))
        first = draw == index == 0
        if self._alignment.steering:
            params.extra_args = wanting(params.extra_args, **self._alignment.steering)
        if not self._alignment.steered:
            return await self._valued(start, params, request_id, first)
        with self._paths.ticket() as path:
            wanted = {"path": path.to_wire(), "budget": start.budget}
            params.extra_args = wanting(params.extra_args, **wanted)
            candidate = await self._valued(start, params, request_id, first)
            if not candidate.token_ids:
                return replace(candidate, kl=0.0)
            end = len(start.token_ids) + len(candidate.token_ids)
            spent, unsteered = self._paths.read(path, end)
            return replace(candidate, kl=spent, unsteered=unsteered)

    async def _valued(
        self, start: _Start, params: SamplingParams, request_id: str, first: bool
    ) -> Candidate:
        """Draws a candidate, with its values and log-likelihoods where rewards read them."""
        objective, steering = self._objective, self._alignment.steering
        if not (objective.reads_values or objective.models):
            return self._read(await self._run(start, params, request_id, first), start)
        with self._values.ticket() as values, self._likelihoods.ticket() as likelihood:
            # One token more: the row that samples it is the one that knows both of the last.
            params.max_tokens = start.length + 1
            if objective.reads_values:
                length = len(start.token_ids) + start.length
                params.extra_args = wanting(
                    params.extra_args, values=values.to_wire(), length=length
                )
            if objective.models:
                wanted = {"ticket": likelihood.to_wire()}
                params.extra_args = wanting(params.extra_args, likelihood=wanted)
            candidate = self._read(await self._run(start, params, request_id, first), start)
            text = Text(
                token_ids=[*start.token_ids, *candidate.token_ids],
                start=len(start.token_ids),
                cache_salt=self._cache_salt,
                steering=steering,
                options=self._given,
            )
            if objective.reads_values:
                found = await self._value(text.token_ids, values, request_id)
                candidate = replace(candidate, values=found)
            if objective.models:
                found = await self._likelihoods.drawn(likelihood, text, f"{request_id}.text")
                candidate = replace(candidate, loglik=found)
            return candidate

    async def _value(
        self, token_ids: Sequence[int], ticket: Ticket, request_id: str
    ) -> Mapping[str, float]:
        values = self._values.read(ticket, len(token_ids))
        if values is not None:
            return values
        # It ended: no later row has V of its last token.
        return await self._last(token_ids, f"{request_id}.end")

    async def _run(
        self, start: _Start, params: SamplingParams, request_id: str, first: bool
    ) -> CompletionOutput:
        run = self._alignment
        async with self._slots.slot(run, run.left) as granted:
            if not granted or run.over:
                return nothing(params)
            prompt = tokens_input(start.token_ids.copy(), cache_salt=self._cache_salt)
            self.alive.add(request_id)
            try:
                drawn = await final(
                    self._engine.generate(prompt, params, request_id, **self._given)
                )
            finally:
                self.alive.discard(request_id)
        if first:
            self.first = drawn
        (output,) = drawn.outputs
        if output.finish_reason == "error" or (output.finish_reason == "abort" and not run.over):
            raise Stopped(output.finish_reason)
        return output

    def _read(self, output: CompletionOutput, start: _Start) -> Candidate:
        """The engine's output cut to the block, with stop strings that begin before it."""
        token_ids = list(output.token_ids)[: start.length]
        ended = output.finish_reason if len(output.token_ids) <= start.length else None
        # A stop string is looked for below, where the text before the block is known too.
        by_token = ended == "stop" and not isinstance(output.stop_reason, str)
        text, stop = "", None
        if self._reads_text:
            reader = detokenizer(self._tokenizer, start.token_ids, self._min_tokens_left(start))
            reader.output_text = start.text
            stop = reader.update(token_ids, by_token)
            token_ids = list(reader.output_token_ids)
            text = reader.output_text[len(start.text) :]
        logprobs = None if output.logprobs is None else output.logprobs[: len(token_ids)]
        if by_token or stop is not None:
            finish_reason: str | None = "stop"
        elif ended == "repetition":
            finish_reason = ended
        else:
            finish_reason = "length" if len(token_ids) == start.left else None
        aborted = ended == "abort" and len(token_ids) < start.length
        return Candidate(
            token_ids=tuple(token_ids),
            finish_reason=finish_reason,
            cut=aborted and finish_reason is None,
            stop_reason=stop or (output.stop_reason if by_token else None),
            text=text,
            logprobs=logprobs,
            cumulative_logprob=cumulative_logprob(logprobs, token_ids)
            if logprobs is not None and _samples_raw(self._params)
            else None,
        )

    def _block_params(self, start: _Start, seed: int | None) -> SamplingParams:
        params = self._min_tokens_left(start)
        params.n = 1
        params.seed = seed
        params.max_tokens = start.length
        # vLLM refuses a minimum above the maximum.
        params.min_tokens = min(params.min_tokens, start.length)
        params.output_kind = RequestOutputKind.FINAL_ONLY
        params.detokenize = bool(params.stop) or params.logprobs is not None
        params.skip_clone = True
        without_prompt_logprobs(params)
        return params

    def _min_tokens_left(self, start: _Start) -> SamplingParams:
        """The client's, with what the response so far leaves of the minimum."""
        params = copy.copy(self._params)
        written = self._params.max_tokens - start.left
        params.min_tokens = max(0, self._params.min_tokens - written)
        return params

    def _seed(self, draw: int, index: int) -> int | None:
        """A seed of its own for every candidate; the very first has the request's."""
        seed: int | None = self._params.seed
        if seed is None or self._choice == draw == index == 0:
            return seed
        key = f"{seed}/{self._choice}/{draw}/{index}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")


def without_prompt_logprobs(params: SamplingParams) -> None:
    """Leaves out the prompt's log-probabilities, and with them what keeps off the prefix cache.

    The prompt has a request of its own for them (``AlignedEngine``).
    """
    if params.prompt_logprobs is not None:
        params.prompt_logprobs = None
        params.skip_reading_prefix_cache = False


def nothing(params: SamplingParams) -> CompletionOutput:
    """The output of a candidate for which no time was left."""
    return CompletionOutput(
        index=0,
        text="",
        token_ids=[],
        cumulative_logprob=None,
        logprobs=None if params.logprobs is None else [],
        finish_reason="abort",
    )


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
