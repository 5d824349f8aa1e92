"""One response under a policy, as the outputs that vLLM's serving code reads."""

import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from cdserve.decoders import Candidate, Decision
from cdserve.decoders.registry import Run
from cdserve.engine.blocks import nothing, without_prompt_logprobs
from cdserve.engine.deadline import ended_at_deadline
from cdserve.engine.prefill import TokenSequence
from cdserve.engine.proposal import EngineProposal, Stopped
from cdserve.engine.request import AlignedRequest
from cdserve.engine.resources import EngineResources
from cdserve.engine.response import ResponseWriter
from cdserve.engine.vllm import (
    CompletionOutput,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    VLLMUnprocessableEntityError,
)
from cdserve.observability.metrics import GUARD_REJECTIONS, SELECT_SECONDS
from cdserve.observability.tracing import ResponseSpans
from cdserve.policy import FIELD
from cdserve.scoring import Floats, Response, token_sums
from cdserve.shared_table import Ticket


class Choice(Protocol):
    """One of a request's ``n`` responses."""

    alive: set[str]
    """Ids of its engine requests that run now."""
    spans: ResponseSpans
    """Spans of its trace; whoever reads the outputs ends them."""

    @property
    def first(self) -> RequestOutput | None:
        """First output of the engine; it tells how much of the prompt was cached."""
        ...

    def outputs(self) -> AsyncGenerator[Sequence[CompletionOutput], None]:
        """The response as it is decoded; its report is added before its last output."""
        ...


class SearchedChoice:
    """A response decoded by a search, whose outputs come decision by decision.

    Args:
        resources: the engine with its readers and slots.
        request: the prompt and its policy.
        choice: index of the response among the request's ``n``.
        spans: spans of the response's trace.
        search: runs the decoder.
    """

    def __init__(
        self,
        resources: EngineResources,
        request: AlignedRequest,
        choice: int,
        spans: ResponseSpans,
        search: Run,
    ) -> None:
        self._request = request
        self._choice = choice
        self._search = search
        self._proposal = EngineProposal(resources, request, choice, spans)
        self._writer = ResponseWriter(
            choice, request.prompt, request.params, resources.tokenizer, parsed=request.parsed
        )
        self.spans = spans
        self.alive = self._proposal.alive

    @property
    def first(self) -> RequestOutput | None:
        return self._proposal.first

    async def outputs(self) -> AsyncGenerator[Sequence[CompletionOutput], None]:
        context = self._request.context
        seed = self._request.params.seed
        seeded = None if seed is None else random.Random(f"{seed}/{self._choice}").getrandbits(63)
        decisions: list[Decision] = []
        try:
            async with aclosing(self._search(context.policy, self._proposal, seeded)) as search:
                async for decision in search:
                    SELECT_SECONDS.observe(time.perf_counter() - self._proposal.scored_at)
                    self.spans.end_decision(decision)
                    self._request.record(decision, self._choice)
                    decisions.append(decision)
                    outputs = self._outputs(decision)
                    if outputs[-1].finished():
                        report = context.add_report(decisions, self._request.index, self._choice)
                        self.spans.set_report(report)
                        self._check_guard(decision)
                    yield outputs
                    if outputs[-1].finished():
                        return
        except Stopped as stopped:
            yield [self._writer.stop(stopped.reason)]

    def _outputs(self, decision: Decision) -> Sequence[CompletionOutput]:
        """Outputs of the selected candidate, or of the refusal in its place."""
        guard = self._request.context.policy.guard
        if guard is not None and guard.on_reject == "refuse" and not decision.accepted:
            return [self._writer.refuse(self._request.context.refusal)]
        return self._writer.append(decision.candidate)

    def _check_guard(self, decision: Decision) -> None:
        """Counts a response that the guard does not accept.

        Raises:
            VLLMUnprocessableEntityError: the policy's ``on_reject`` is ``error``.
        """
        policy = self._request.context.policy
        if policy.guard is None or decision.accepted:
            return
        GUARD_REJECTIONS.labels(policy.method, policy.guard.on_reject).inc()
        if policy.guard.on_reject == "error":
            score, lowest = _distinct(decision.score.total, policy.guard.score)
            draws = decision.draws
            drawn = len(decision.candidates) if draws is None else draws.made
            raise VLLMUnprocessableEntityError(
                f"the score of the response selected from {drawn} is {score}; "
                f"{FIELD}.threshold accepts scores from {lowest}",
                parameter=f"{FIELD}.threshold",
            )


def _distinct(a: float, b: float) -> tuple[str, str]:
    """Two different numbers with as many digits as tell them apart, at least 6."""
    texts = ((f"{a:.{digits}g}", f"{b:.{digits}g}") for digits in range(6, 18))
    return next(pair for pair in texts if pair[0] != pair[1])


class SteeredChoice:
    """A response that the engine samples token by token from steered rows.

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
        self._choice = choice
        self.spans = spans
        self._id = f"{request.engine_id}-{choice}"
        self._reports = request.context.policy.report != "none"
        self.alive: set[str] = set()
        self.first: RequestOutput | None = None
        """First output of the engine."""

    async def outputs(self) -> AsyncGenerator[Sequence[CompletionOutput], None]:
        token_ids: list[int] = []
        text = ""
        with self._resources.path_kl.ticket() as path_kl:
            bounded = self._context.policy.budget is not None
            params = self._params(path_kl if self._reports or bounded else None)
            async with aclosing(self._drawn(params)) as drawn:
                async for output in drawn:
                    output.index = self._choice
                    if params.output_kind == RequestOutputKind.DELTA:
                        token_ids.extend(output.token_ids)
                        text += output.text
                    else:
                        token_ids, text = list(output.token_ids), output.text
                    late = output.finish_reason == "abort" and self._context.deadline_passed
                    if late:
                        output.finish_reason = "length"  # the value that OpenAI's clients expect
                    ended = output.finish_reason in ("stop", "length", "repetition")
                    if ended and self._reports:
                        reason = "deadline" if late else output.finish_reason
                        await self._report(token_ids, text, reason, path_kl)
                    yield [output]

    async def _drawn(self, params: SamplingParams) -> AsyncGenerator[CompletionOutput, None]:
        """Outputs of the engine request, once there is a slot; the deadline aborts it."""
        context, engine = self._context, self._resources.engine
        async with self._resources.slots.slot(context, context.seconds_left) as granted:
            if not granted or context.deadline_passed:
                yield nothing(params)
                return
            self.alive.add(self._id)
            try:
                inputs = self._request.inputs
                stream = engine.generate(inputs, params, self._id, **self._options)
                with ended_at_deadline(engine, context, self.alive):
                    async for step in stream:
                        self.first = self.first or step
                        (output,) = step.outputs
                        yield output
            finally:
                self.alive.discard(self._id)

    @property
    def _options(self) -> dict[str, Any]:
        """Further arguments of ``EngineClient.generate``."""
        return {**self._request.options, **self.spans.options}

    def _params(self, path_kl: Ticket | None) -> SamplingParams:
        """The client's parameters, derived as vLLM derives those of each of ``n`` responses."""
        params: SamplingParams = self._request.params.clone()
        params.n = 1
        without_prompt_logprobs(params)
        if params.seed is not None:
            params.seed += self._choice
        budget = self._context.policy.budget
        asked = replace(self._request.worker_request, path_kl=path_kl, kl_budget=budget)
        params.extra_args = asked.added_to(params.extra_args)
        return params

    async def _report(
        self, token_ids: list[int], text: str, finish_reason: str, path_kl: Ticket
    ) -> None:
        """Scores the response and adds its report: one decision with one candidate."""
        context, request = self._context, self._request
        kl, unsteered = 0.0, 0
        if context.worker_request.steered and token_ids:
            length = len(request.prompt) + len(token_ids)
            kl, unsteered = self._resources.path_kl.read(path_kl, length)
        response = await self._response(token_ids, text)
        candidate = Candidate(
            token_ids=tuple(token_ids),
            finish_reason=finish_reason,
            text=text,
            kl=kl,
            unsteered=unsteered,
        )
        with self.spans.span("score", candidates=1):
            scores = await context.objective.score([response], request.engine_id)
        decision = Decision(
            candidates=[candidate],
            scores=scores,
            chosen=0,
            tie=False,
            kl_bound=0.0,
            kl_estimate=0.0,
            kl_estimator="exact_path",
        )
        self.spans.end_decision(decision)
        request.record(decision, self._choice)
        self.spans.set_report(context.add_report([decision], request.index, self._choice))

    async def _response(self, token_ids: Sequence[int], text: str) -> Response:
        """The finished response with the values and statistics that its rewards read."""
        request, objective = self._request, self._context.objective
        sequence = TokenSequence(
            token_ids=[*request.prompt, *token_ids],
            start=len(request.prompt),
            cache_salt=request.cache_salt,
            worker_request=request.worker_request,
            options=self._options,
        )
        values: Mapping[str, float] = {}
        stats: Mapping[str, Floats] = {}
        if objective.token_stats:
            stats = await self._resources.token_stats.every(sequence, f"{self._id}.text")
        if objective.reads_values:
            values = await self._resources.values.last(sequence, f"{self._id}.end")
        return Response(
            prompt=request.prompt_text,
            text=text,
            tokens=len(token_ids),
            finished=True,
            values=values,
            token_sums={name: token_sums([of_tokens]) for name, of_tokens in stats.items()},
            messages=request.messages,
        )
