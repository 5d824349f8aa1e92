"""One response under a policy, as the outputs that vLLM's serving code reads."""

import random
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from cdserve.decoders import Candidate, Decision
from cdserve.decoders.registry import Run
from cdserve.engine.deadline import ended_at_deadline
from cdserve.engine.likelihoods import Likelihoods, Text
from cdserve.engine.proposal import EngineProposal, Stopped, nothing, without_prompt_logprobs
from cdserve.engine.response import ResponseWriter
from cdserve.engine.run import AlignmentRun
from cdserve.engine.slots import Slots
from cdserve.engine.steering import Paths
from cdserve.engine.values import Values, wanting
from cdserve.engine.vllm import (
    CompletionOutput,
    EngineClient,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    TokenizerLike,
)
from cdserve.observability.metrics import SELECT_SECONDS
from cdserve.observability.tracing import ResponseSpans
from cdserve.scoring import Response


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AlignedRequest:
    """One prompt on its way through the aligned engine."""

    run: AlignmentRun
    index: int
    inputs: Any
    """The prompt as vLLM's serving code handed it over."""
    prompt: list[int]
    prompt_text: str
    params: SamplingParams
    request_id: str
    """vLLM's. Clients choose it, so several requests under way may share it."""
    engine_id: str
    """What the ids of its engine requests begin with. It is this request's alone."""
    options: Mapping[str, Any]

    def decided(self, decision: Decision, choice: int) -> None:
        """Tells the run of a decision; its choice's index is among those of all prompts."""
        self.run.decisions.append((self.index * self.params.n + choice, decision))


class Choice(Protocol):
    """One of a request's ``n`` responses."""

    alive: set[str]
    """Ids of the engine requests that run for it now."""
    spans: ResponseSpans
    """Its trace, ended by who reads its outputs."""

    @property
    def first(self) -> RequestOutput | None:
        """Its first output of the engine's, which says how much of the prompt was cached."""
        ...

    def outputs(self) -> AsyncGenerator[CompletionOutput, None]:
        """The response as it is made; its report is there before its last output is."""
        ...


class SearchedChoice:
    """A response that a decoder's search makes, a decision at a time."""

    def __init__(
        self,
        request: AlignedRequest,
        search: Run,
        proposal: EngineProposal,
        choice: int,
        spans: ResponseSpans,
        tokenizer: TokenizerLike,
    ) -> None:
        self._request = request
        self._search = search
        self._proposal = proposal
        self._choice = choice
        self.spans = spans
        self._writer = ResponseWriter(choice, request.prompt, request.params, tokenizer)
        self.alive = proposal.alive

    @property
    def first(self) -> RequestOutput | None:
        return self._proposal.first

    async def outputs(self) -> AsyncGenerator[CompletionOutput, None]:
        run = self._request.run
        seed = self._request.params.seed
        seeded = None if seed is None else random.Random(f"{seed}/{self._choice}").getrandbits(63)
        decisions: list[Decision] = []
        try:
            async with aclosing(self._search(run.policy, self._proposal, seeded)) as made:
                async for decision in made:
                    SELECT_SECONDS.observe(time.perf_counter() - self._proposal.scored)
                    self.spans.decided(decision)
                    self._request.decided(decision, self._choice)
                    decisions.append(decision)
                    output = self._writer.append(decision.candidate)
                    if output.finished():
                        report = run.report_on(decisions, self._request.index, self._choice)
                        self.spans.reported(report)
                    yield output
                    if output.finished():
                        return
        except Stopped as stopped:
            yield self._writer.stop(stopped.reason)


class SteeredChoice:
    """A response that the engine samples by itself, its rows steered; handed on as it comes."""

    def __init__(
        self,
        request: AlignedRequest,
        choice: int,
        spans: ResponseSpans,
        engine: EngineClient,
        values: Values,
        paths: Paths,
        likelihoods: Likelihoods,
        slots: Slots,
    ) -> None:
        self._request = request
        self._choice = choice
        self.spans = spans
        self._engine = engine
        self._slots = slots
        self._values = values
        self._paths = paths
        self._likelihoods = likelihoods
        self._id = f"{request.engine_id}-{choice}"
        self._reports = request.run.policy.report != "none"
        self.alive: set[str] = set()
        self.first: RequestOutput | None = None
        """Its first output of the engine's."""

    async def outputs(self) -> AsyncGenerator[CompletionOutput, None]:
        request = self._request
        token_ids: list[int] = []
        text = ""
        with self._paths.ticket() as path:
            params = self._params(path.to_wire() if self._reports else None)
            async with aclosing(self._drawn(params)) as drawn:
                async for output in drawn:
                    output.index = self._choice
                    if params.output_kind == RequestOutputKind.DELTA:
                        token_ids.extend(output.token_ids)
                        text += output.text
                    else:
                        token_ids, text = list(output.token_ids), output.text
                    late = output.finish_reason == "abort" and request.run.over
                    if late:
                        output.finish_reason = "length"  # as OpenAI's clients know it
                    ended = output.finish_reason in ("stop", "length", "repetition")
                    if ended and self._reports:
                        end = len(request.prompt) + len(token_ids)
                        spent = (0.0, 0)
                        if request.run.steered and token_ids:
                            spent = self._paths.read(path, end)
                        reason = "deadline" if late else output.finish_reason
                        await self._report(token_ids, text, reason, *spent)
                    yield output

    async def _drawn(self, params: SamplingParams) -> AsyncGenerator[CompletionOutput, None]:
        """What the engine draws, once there is a slot; the deadline aborts it."""
        request, run = self._request, self._request.run
        async with self._slots.slot(run, run.left) as granted:
            if not granted or run.over:
                yield nothing(params)
                return
            self.alive.add(self._id)
            try:
                stream = self._engine.generate(request.inputs, params, self._id, **self._given)
                with ended_at_deadline(self._engine, run, self.alive):
                    async for made in stream:
                        self.first = self.first or made
                        (output,) = made.outputs
                        yield output
            finally:
                self.alive.discard(self._id)

    @property
    def _given(self) -> dict[str, Any]:
        """What the engine is given with the request, beside prompt and parameters."""
        return {**self._request.options, **self.spans.options}

    def _params(self, path: list[str | int] | None) -> SamplingParams:
        """As vLLM derives those of each of ``n`` responses."""
        params: SamplingParams = self._request.params.clone()
        params.n = 1
        without_prompt_logprobs(params)
        if params.seed is not None:
            params.seed += self._choice
        run = self._request.run
        budget = run.policy.budget
        params.extra_args = wanting(params.extra_args, **run.steering, path=path, budget=budget)
        return params

    async def _report(
        self,
        token_ids: list[int],
        text: str,
        finish_reason: str,
        spent: float,
        unsteered: int,
    ) -> None:
        run, request = self._request.run, self._request
        values: Mapping[str, float] = {}
        loglik: Mapping[str, float] = {}
        whole = [*request.prompt, *token_ids]
        salt = request.inputs.get("cache_salt")
        if run.objective.models:
            read = Text(
                token_ids=whole,
                start=len(request.prompt),
                cache_salt=salt,
                steering=run.steering,
                options=self._given,
            )
            loglik = (await self._likelihoods.every(read, f"{self._id}.text"))[-1]
        if run.objective.reads_values:
            values = await self._values.last(
                whole, f"{self._id}.end", salt, run.steering, self._given
            )
        response = Response(
            prompt=request.prompt_text,
            text=text,
            tokens=len(token_ids),
            finished=True,
            values=values,
            loglik=loglik,
            messages=run.messages(request.index),
        )
        candidate = Candidate(
            token_ids=tuple(token_ids),
            finish_reason=finish_reason,
            text=text,
            kl=spent,
            unsteered=unsteered,
        )
        with self.spans.during("score", candidates=1):
            scores = await run.objective.score([response], request.engine_id)
        decision = Decision(
            candidates=[candidate],
            scores=scores,
            chosen=0,
            tie=False,
            kl_bound=0.0,
            kl_estimate=0.0,
            kl_estimator="exact_path",
        )
        self.spans.decided(decision)
        request.decided(decision, self._choice)
        self.spans.reported(run.report_on([decision], request.index, self._choice))
