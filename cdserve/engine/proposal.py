"""Candidates drawn from the engine: K requests that continue each prefix by token ids."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

from cdserve.decoders import Candidate, Comparison, Outlook, Prefix, Score
from cdserve.decoders.candidate import text_of
from cdserve.engine.blocks import Blocks, BlockStart, nothing
from cdserve.engine.comparisons import Comparer
from cdserve.engine.deadline import AGAIN, ended_at_deadline
from cdserve.engine.drafts import Draft
from cdserve.engine.first_tokens import FirstTokens
from cdserve.engine.growing import GrowingResponse
from cdserve.engine.prefill import TokenSequence
from cdserve.engine.request import AlignedRequest
from cdserve.engine.resources import EngineResources
from cdserve.engine.vllm import (
    CompletionOutput,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    VLLMUnprocessableEntityError,
    tokens_input,
)
from cdserve.observability.metrics import COMPARE_SECONDS, GENERATE_SECONDS, SCORE_SECONDS
from cdserve.observability.tracing import ResponseSpans
from cdserve.policy import FIELD
from cdserve.scoring import PATTERN_SECONDS, Objective, Response, token_sums
from cdserve.worker.request import NOTHING, DrawPlace, FirstTokenDraws, WorkerRequest


class Stopped(Exception):
    """The engine stopped a candidate: by an abort, or by an internal error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class EngineProposal:
    """Draws and scores the candidates of one response.

    Args:
        resources: the engine with its readers and slots.
        request: the prompt and its policy.
        choice: index of the response among the request's ``n``.
        spans: spans of the response's trace.
    """

    def __init__(
        self,
        resources: EngineResources,
        request: AlignedRequest,
        choice: int,
        spans: ResponseSpans,
    ) -> None:
        self._resources = resources
        self._request = request
        self._context = request.context
        self._objective = request.context.objective
        self._params = request.params
        self._worker_request = request.worker_request
        self._reads_values = self._objective.reads_values
        self._reads_stats = bool(self._objective.token_stats)
        self._choice = choice
        self._spans = spans
        self._comparer = Comparer(self._context, request.engine_id)
        self._blocks = Blocks(request, resources.tokenizer)
        self._first_tokens = FirstTokens(
            resources.engine, resources.first_tokens, request, self._seed
        )
        self._draws = self._rollouts = 0
        self._drafts_drawn: list[Draft] = []
        self._drawing: set[asyncio.Task[Any]] = set()
        """Tasks inside ``draw``."""
        self._waiting: set[asyncio.Task[Any]] = set()
        """Tasks of ``_drawing`` whose candidate waits for a slot."""
        self._abandoned = False
        self._growing: list[GrowingResponse] = []
        self.alive: set[str] = set()
        """Ids of its engine requests that run now."""
        self.scored_at = time.perf_counter()
        """When prefixes were scored or compared last, by ``time.perf_counter``."""
        self.first: RequestOutput | None = None
        """Output of the very first candidate; it tells how much of the prompt was cached."""

    @property
    def _options(self) -> dict[str, Any]:
        """Further arguments of ``EngineClient.generate``."""
        return {**self._request.options, **self._spans.options}

    @property
    def deadline_passed(self) -> bool:
        """Whether the deadline has passed."""
        return self._context.deadline_passed

    async def sample(
        self,
        prefixes: Sequence[Prefix],
        count: int,
        max_tokens: int | None,
        budget: float | None = None,
    ) -> Sequence[Candidate]:
        """Draws ``count`` i.i.d. continuations of each prefix.

        If one fails or this is cancelled, all are aborted. The deadline cuts them.

        Args:
            max_tokens: length of a continuation at most; None for the rest of the response.
            budget: nats that steering a continuation may cost; None for no bound.
        """
        blocks = [self._blocks.start(prefix, max_tokens, budget) for prefix in prefixes]
        draw, self._draws = self._draws, self._draws + 1
        starts = self._starts(blocks, count, draw)
        return await self._together(starts, draw, self._drafts(starts, draw))

    async def roll_out(self, prefixes: Sequence[Prefix], max_tokens: int) -> Sequence[Candidate]:
        """The most likely continuation of each prefix; the deadline cuts them.

        Args:
            max_tokens: length of a continuation at most.
        """
        self._rollouts += 1
        blocks = [self._blocks.start(prefix, max_tokens, None) for prefix in prefixes]
        starts = [replace(block, until=None, greedy=True) for block in blocks]
        # A number of their own: rollouts leave the seeds of the draws as they are.
        return await self._together(starts, -self._rollouts, [None] * len(starts))

    async def _together(
        self, starts: Sequence[BlockStart], draw: int, drafts: Sequence[Draft | None]
    ) -> Sequence[Candidate]:
        """Draws a candidate after each start. If one fails, all are aborted."""
        places = self._draw_places(draw, [start.ended is None for start in starts])
        drawing = [
            self._candidate(start, draw, i, draft, place)
            for i, (start, draft, place) in enumerate(zip(starts, drafts, places, strict=True))
        ]
        return await self._all(drawing)

    def places(self, most: int) -> int:
        """How many prefixes to grow at the same time: with a seed, ``most`` whatever else runs."""
        if self._params.seed is not None:
            return most
        # The prompts of an HTTP request share its slots.
        responses: int = self._params.n * len(self._context.prompts)
        share = self._resources.slots.share(self._context) // responses
        return min(most, max(1, share))

    async def grow(self, prefixes: Sequence[Prefix], max_tokens: int) -> Sequence[Candidate]:
        """Continues each prefix by a block, from a request that goes on past it.

        The next call takes the following blocks of these prefixes from their requests, and ends the
        other ones. If a reward reads statistics of tokens, the blocks are those of ``sample``.

        Args:
            max_tokens: length of a block at most.
        """
        if self._reads_stats:
            return await self.sample(prefixes, 1, max_tokens)
        by_last = {id(response.last): response for response in self._growing}
        found = [by_last.get(id(prefix[-1])) if prefix else None for prefix in prefixes]
        await self._end([response for response in self._growing if response not in found])
        draw, self._draws = self._draws, self._draws + 1
        starts = [self._blocks.start(prefix, max_tokens, None) for prefix in prefixes]
        drafts = self._drafts(starts, draw)
        drawing = []
        for i, place in enumerate(self._draw_places(draw, [one is None for one in found])):
            response = found[i] or self._begin(prefixes[i], max_tokens, draw, i, place)
            response.watch(drafts[i])
            drawing.append(self._following(response, starts[i], f"{self._draw_id(draw)}.{i}"))
        return await self._all(drawing)

    async def _all(self, drawing: Sequence[Coroutine[Any, Any, Candidate]]) -> Sequence[Candidate]:
        """Candidates that are drawn at the same time; the deadline ends them."""
        try:
            ended = ended_at_deadline(self._resources.engine, self._context, self.alive)
            traced = self._spans.span("generate", candidates=len(drawing))
            with GENERATE_SECONDS.time(), traced, ended:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(candidate) for candidate in drawing]
        except* Exception as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    def _begin(
        self, prefix: Prefix, every: int, draw: int, index: int, place: DrawPlace | None
    ) -> GrowingResponse:
        """Begins a response that continues a prefix, with V after every ``every`` tokens."""
        start, tickets = self._blocks.start(prefix, None, None), ExitStack()
        asked = self._asked(start, place, tickets, every)
        params = self._blocks.params(start, asked, self._seed(draw, index))
        params.output_kind = RequestOutputKind.DELTA
        params.stream_interval = every if self._context.drafts is None else None
        response = GrowingResponse(
            asked=asked, tickets=tickets, last=prefix[-1] if prefix else None
        )
        request_id = f"{self._draw_id(draw)}.{index}"
        running = self._run(start, params, request_id, response.add, first=draw == index == 0)
        response.begin(asyncio.create_task(running))
        self._growing.append(response)
        return response

    async def _following(
        self, response: GrowingResponse, start: BlockStart, request_id: str
    ) -> Candidate:
        """The next block of a response, which ``start`` is the beginning of."""
        block = self._blocks.read(await response.following(start.length), start)
        block = await self._with_results(block, start, response.asked, request_id)
        if block.kl is not None:  # of the response so far
            block = replace(block, **response.step(block.kl, block.unsteered))
        response.read(block)
        if block.finish_reason is not None:
            await self._end([response])
        return block

    async def _end(self, responses: Sequence[GrowingResponse]) -> None:
        """Ends responses, and returns once their slots are free."""
        self._growing = [response for response in self._growing if response not in responses]
        ending = [response.end() for response in responses]
        await asyncio.gather(*ending, return_exceptions=True)

    def _draw_id(self, draw: int) -> str:
        return f"{self._request.engine_id}-{self._choice}.{draw}"

    async def draw(self, index: int, budget: float | None = None) -> Candidate:
        """Draws a whole response, with the seed of this candidate in the first ``sample``.

        Args:
            index: index among the candidates of the response.
            budget: nats that steering may cost; None for no bound.
        """
        start = self._blocks.start((), None, budget)
        draft = None
        if self._context.drafts is not None:
            draft = Draft(length=start.length, before=0)
            self._drafts_drawn.append(draft)
            choice = self._request.choice_index(self._choice)
            self._context.drafts.begin(choice, 0, self._drafts_drawn)
        task = asyncio.current_task()
        assert task is not None
        self._drawing.add(task)
        self._waiting.add(task)
        ended = ended_at_deadline(self._resources.engine, self._context, self.alive)
        traced = self._spans.span("generate", candidates=1)
        try:
            with GENERATE_SECONDS.time(), traced, ended:
                return await self._candidate(start, 0, index, draft)
        finally:
            self._drawing.discard(task)
            self._waiting.discard(task)

    async def abandon(self) -> None:
        """Ends all growing responses and calls of ``draw``, and returns once they have ended.

        Candidates that run are returned with the tokens drawn so far. Candidates that wait for a
        slot are cancelled.
        """
        self._abandoned = True
        await self._end(self._growing)
        for task in self._waiting:
            task.cancel()
        while self._drawing:
            await self._resources.engine.abort(list(self.alive))
            await asyncio.wait(self._drawing, timeout=AGAIN)

    @property
    def score_variance(self) -> float | None:
        """Variance of a score with mean 0, by the operator's statistics of the rewards, or None."""
        return self._objective.score_variance

    def _drafts(self, starts: Sequence[BlockStart], draw: int) -> Sequence[Draft | None]:
        """A draft of each candidate, if the client watches them."""
        if self._context.drafts is None:
            return [None] * len(starts)
        written = len(self._request.prompt)
        drafts = [
            Draft(length=start.length, before=len(start.token_ids) - written) for start in starts
        ]
        self._context.drafts.begin(self._request.choice_index(self._choice), draw, drafts)
        return drafts

    async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        """Scores each prefix by the objective."""
        return await self._scores(prefixes, self._objective)

    async def score_final(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        """Scores prefixes that have ended by the final objective."""
        assert self._objective.final is not None  # the policy has final rewards
        return await self._scores(prefixes, self._objective.final)

    async def _scores(self, prefixes: Sequence[Prefix], objective: Objective) -> Sequence[Score]:
        with SCORE_SECONDS.time(), self._spans.span("score", candidates=len(prefixes)):
            responses = [await self._response(prefix) for prefix in prefixes]
            scores = await objective.score(responses, self._request.engine_id)
        self.scored_at = time.perf_counter()
        return scores

    async def compare(
        self, pairs: Sequence[tuple[Candidate, Candidate]]
    ) -> Sequence[Comparison | None]:
        """Compares pairs of whole responses by the policy's judge."""
        texts = [(a.text, b.text) for a, b in pairs]
        with COMPARE_SECONDS.time(), self._spans.span("compare", pairs=len(pairs)):
            compared = await self._comparer.compare(self._request.prompt_text, texts)
        self.scored_at = time.perf_counter()
        return compared

    def outlook(self, tokens: int) -> Outlook:
        """Rest of a response after an unfinished prefix, within the request's ``max_tokens``."""
        outlook = self._objective.outlook(tokens)
        assert outlook is not None  # checked with the policy
        left = self._params.max_tokens - tokens
        return replace(outlook, tokens=min(outlook.tokens, float(left)))

    async def _response(self, prefix: Prefix) -> Response:
        return Response(
            prompt=self._request.prompt_text,
            text=text_of(prefix),
            tokens=sum(len(candidate.token_ids) for candidate in prefix),
            finished=bool(prefix) and prefix[-1].finish_reason is not None,
            values=prefix[-1].values if prefix else await self._prompt_values(),
            token_sums={
                name: token_sums([candidate.token_stats[name] for candidate in prefix])
                for name in self._objective.token_stats
            },
            messages=self._request.messages,
        )

    async def _prompt_values(self) -> Mapping[str, float]:
        if not self._objective.reads_values:
            return {}
        request_id = f"{self._request.engine_id}-{self._choice}.prompt"
        prompt = self._sequence(self._request.prompt)
        return await self._resources.values.last(prompt, request_id)

    def _sequence(self, token_ids: Sequence[int], start: int = 0) -> TokenSequence:
        return TokenSequence(
            token_ids=token_ids,
            start=start,
            cache_salt=self._request.cache_salt,
            worker_request=self._worker_request,
            options=self._options,
        )

    def _starts(self, blocks: Sequence[BlockStart], count: int, draw: int) -> Sequence[BlockStart]:
        """``count`` starts of each block, with the first tokens drawn for them and by them."""
        starts = [block for block in blocks for _ in range(count)]
        if len(blocks) > 1 or self.deadline_passed:
            return starts
        (block,) = blocks
        seeds = self._first_tokens.seeds(draw + 1, count) if block.length < block.left else ()
        known = self._first_tokens.take(draw, block.token_ids)
        for i, start in enumerate(starts):
            first, ended = known[i] if i < len(known) else None, None
            if first is not None:
                output = self._first_tokens.output(first)
                ended = None if self._blocks.read(output, start).finish_reason is None else output
            starts[i] = replace(start, first=first, ended=ended, next_seeds=seeds)
        return starts

    def _draw_places(self, draw: int, begin: Sequence[bool]) -> Sequence[DrawPlace | None]:
        """Places of the requests that begin in one step; None where not all have slots now."""
        size = sum(begin)
        if size < 2 or not self._resources.slots.available(size):
            return [None] * len(begin)
        preceding = accumulate(begin[:-1], initial=0)
        return [DrawPlace(self._draw_id(draw), before, size) for before in preceding]

    async def _candidate(
        self,
        start: BlockStart,
        draw: int,
        index: int,
        draft: Draft | None,
        place: DrawPlace | None = None,
    ) -> Candidate:
        """Draws a candidate."""
        request_id = f"{self._draw_id(draw)}.{index}"
        with ExitStack() as tickets:
            asked = self._asked(start, place, tickets)
            output = start.ended
            if output is None:
                params = self._blocks.params(start, asked, self._seed(draw, index))
                watch = None if draft is None else partial(self._show, draft, start, asked)
                first = draw == index == 0
                output = await self._run(start, params, request_id, watch, first=first)
            candidate = self._blocks.read(output, start)
            if self._abandoned:
                return candidate  # nothing else of it is used
            self._first_tokens.read(draw + 1, asked, [*start.token_ids, *candidate.token_ids])
            return await self._with_results(candidate, start, asked, request_id)

    def _asked(
        self,
        start: BlockStart,
        place: DrawPlace | None,
        tickets: ExitStack,
        every: int | None = None,
    ) -> WorkerRequest:
        """Worker request of a candidate or a growing response; the stack holds its tickets.

        Args:
            every: tokens of a growing response's blocks; None for a candidate.
        """
        resources, asked = self._resources, self._worker_request
        changes: dict[str, Any] = {}
        prompt = len(self._request.prompt)
        if self._params.structured_outputs is not None and len(start.token_ids) > prompt:
            changes["response_start"] = prompt  # where the grammar begins
        if asked.steered:
            changes["path_kl"] = tickets.enter_context(resources.path_kl.ticket())
            changes["kl_budget"] = start.budget
        if self._reads_values:
            values = (
                resources.values.ticket() if every is None else resources.values.repeated(every)
            )
            changes["values"] = tickets.enter_context(values)
            changes["value_length"] = len(start.token_ids) + (every or start.length)
            changes["value_every"] = every
            changes["drawn_values"] = self._context.drafts is not None and every is None
        if start.next_seeds:
            written = tickets.enter_context(resources.first_tokens.ticket())
            changes["first_tokens"] = FirstTokenDraws(written, start.next_seeds)
        if start.first is not None:
            changes["first_drawn"] = True
        if self._reads_stats:
            ticket = resources.token_stats.ticket(start.length)
            changes["token_stats"] = tickets.enter_context(ticket)
        if place is not None and (changes or asked != NOTHING):
            changes["place"] = place
        return replace(asked, **changes) if changes else asked

    async def _with_results(
        self, candidate: Candidate, start: BlockStart, asked: WorkerRequest, request_id: str
    ) -> Candidate:
        """The candidate with answer, path KL, values and token statistics, where asked for."""
        resources = self._resources
        whole = [*start.token_ids, *candidate.token_ids]
        results: dict[str, Any] = {}
        if self._context.extractor is not None:
            results["answer"] = await self._answer(candidate.text)
        if asked.values is not None:
            values = resources.values.read(asked.values, len(whole))
            if values is None:  # The response ended: no later row has V of its last token.
                sequence = self._sequence(whole, len(start.token_ids))
                values = await resources.values.last(sequence, f"{request_id}.end")
            results["values"] = values
        if asked.token_stats is not None:
            sequence = self._sequence(whole, len(start.token_ids))
            text_id = f"{request_id}.text"
            results["token_stats"] = await resources.token_stats.drawn(
                asked.token_stats, sequence, text_id
            )
        if asked.path_kl is not None:
            drawn = bool(candidate.token_ids)
            kl, unsteered = resources.path_kl.read(asked.path_kl, len(whole)) if drawn else (0.0, 0)
            results |= {"kl": kl, "unsteered": unsteered}
        return replace(candidate, **results) if results else candidate

    async def _answer(self, text: str) -> str | None:
        """The answer in a response.

        Raises:
            VLLMUnprocessableEntityError: the client's regular expression takes too long.
            ScoringError: the operator's function failed.
        """
        assert self._context.extractor is not None
        try:
            return await self._context.extractor.find(text, self._request.engine_id)
        except TimeoutError as error:
            raise VLLMUnprocessableEntityError(
                f"{FIELD}.selection.vote.extract took more than {PATTERN_SECONDS:g} s on a "
                f"response of {len(text)} characters",
                parameter=f"{FIELD}.selection.vote.extract",
            ) from error

    async def _run(
        self,
        start: BlockStart,
        params: SamplingParams,
        request_id: str,
        watch: Callable[[RequestOutput], None] | None,
        first: bool,
    ) -> CompletionOutput:
        """Runs one engine request once there is a slot; returns its last output.

        Args:
            watch: called with each output; None to watch none.
            first: whether this is the very first candidate.
        """
        context = self._context
        async with self._resources.slots.slot(context, context.seconds_left) as granted:
            if (task := asyncio.current_task()) is not None:
                self._waiting.discard(task)
            if not granted or context.deadline_passed:
                return nothing(params)
            known = [] if start.first is None else [start.first]
            token_ids = [*start.token_ids, *known]
            prompt = tokens_input(token_ids, cache_salt=self._request.cache_salt)
            outputs = self._resources.engine.generate(prompt, params, request_id, **self._options)
            self.alive.add(request_id)
            drawn: RequestOutput | None = None
            try:
                async for drawn in outputs:
                    if first:
                        self.first = drawn
                    if watch is not None:
                        watch(drawn)
            finally:
                self.alive.discard(request_id)
        assert drawn is not None  # vLLM ends every request with an output
        (output,) = drawn.outputs
        intended = context.deadline_passed or self._abandoned
        aborted = output.finish_reason == "abort" and not intended
        if aborted or output.finish_reason == "error":
            raise Stopped(output.finish_reason)
        output.token_ids = [*known, *output.token_ids]
        return output

    def _show(
        self, draft: Draft, start: BlockStart, asked: WorkerRequest, output: RequestOutput
    ) -> None:
        """Updates the draft of a candidate by an output of its engine request."""
        (drawn,) = output.outputs
        values = None
        if asked.values is not None:
            values = self._resources.values.latest(asked.values, len(start.token_ids) + 1)
        draft.update(drawn.text, len(drawn.token_ids), values)

    def _seed(self, draw: int, index: int) -> int | None:
        """A distinct seed for every candidate; the very first has the request's."""
        seed: int | None = self._params.seed
        if seed is None or self._choice == draw == index == 0:
            return seed
        key = f"{seed}/{self._choice}/{draw}/{index}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")
