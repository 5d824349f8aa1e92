"""AlignedEngine: an EngineClient that decodes towards a reward where a request asks for it."""

import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from cdserve.decoders import Decision
from cdserve.engine.proposal import EngineProposal, Stopped
from cdserve.engine.proxy import EngineProxy
from cdserve.engine.response import ResponseWriter
from cdserve.engine.run import AlignmentRun
from cdserve.engine.values import Values, refuse_reserved
from cdserve.engine.vllm import (
    CompletionOutput,
    EngineClient,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    VLLMValidationError,
    merge_async_iterators,
)
from cdserve.plugin.rows import REQUEST_KEY
from cdserve.report import report

PASSED_ON = ("lora_request", "trace_headers", "priority", "data_parallel_rank", "session_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One prompt on its way through the aligned engine."""

    run: AlignmentRun
    index: int
    prompt: list[int]
    prompt_text: str
    cache_salt: str | None
    params: SamplingParams
    request_id: str
    options: Mapping[str, Any]


class AlignedEngine(EngineProxy):
    """Runs requests with a policy through its decoder; hands all others to vLLM untouched.

    Args:
        inner: vLLM's engine.
        values: reads V out of it.
    """

    def __init__(self, inner: EngineClient, values: Values) -> None:
        super().__init__(inner)
        self.values = values
        self._live: defaultdict[str, list[EngineProposal]] = defaultdict(list)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As vLLM's. A policy rides as an AlignmentRun in ``extra_args``.

        Raises:
            VLLMValidationError: the request cannot be decoded under its policy.
        """
        run = (sampling_params.extra_args or {}).get(REQUEST_KEY)
        if not isinstance(run, AlignmentRun):
            refuse_reserved(sampling_params)
            stream: AsyncGenerator[RequestOutput, None] = self.inner.generate(
                prompt, sampling_params, request_id, **options
            )
            return stream
        params = sampling_params.clone()
        params.extra_args = {k: v for k, v in params.extra_args.items() if k != REQUEST_KEY} or None
        token_ids = _token_ids(prompt)
        # V of the last token takes one position more than the text.
        params.max_tokens = min(
            params.max_tokens, self.model_config.max_model_len - 1 - len(token_ids)
        )
        if params.max_tokens < 1:
            raise VLLMValidationError(
                f"the prompt has {len(token_ids)} tokens; under an alignment policy at most "
                f"{self.model_config.max_model_len - 2} leave room for a response",
                parameter="prompt",
            )
        return self._aligned(
            _Request(
                run=run,
                index=run.begin(),
                prompt=token_ids,
                prompt_text=self._prompt_text(prompt) if run.objective.reads_text else "",
                cache_salt=prompt.get("cache_salt"),
                params=params,
                request_id=request_id,
                options={k: v for k, v in options.items() if k in PASSED_ON and v is not None},
            )
        )

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """As vLLM's; an aligned request's candidates are aborted with it."""
        ids = [request_id] if isinstance(request_id, str) else list(request_id)
        alive = [i for one in ids for proposal in self._live.get(one, ()) for i in proposal.alive]
        await self.inner.abort([*ids, *alive])

    async def _aligned(self, request: _Request) -> AsyncGenerator[RequestOutput, None]:
        proposals = [self._proposal(request, choice) for choice in range(request.params.n)]
        self._live[request.request_id].extend(proposals)
        choices = [self._choice(request, i, proposal) for i, proposal in enumerate(proposals)]
        final_only = request.params.output_kind == RequestOutputKind.FINAL_ONLY
        finished: dict[int, CompletionOutput] = {}
        try:
            async with aclosing(merge_async_iterators(*choices)) as outputs:
                async for choice, output in outputs:
                    if output.finished():
                        finished[choice] = output
                    done = len(finished) == request.params.n
                    if done or not final_only:
                        ready = [finished[i] for i in sorted(finished)] if final_only else [output]
                        yield _request_output(request, ready, done, proposals[0].first)
        finally:
            del self._live[request.request_id]

    async def _choice(
        self, request: _Request, choice: int, proposal: EngineProposal
    ) -> AsyncGenerator[CompletionOutput, None]:
        run = request.run
        writer = ResponseWriter(choice, request.prompt, request.params, self._tokenizer())
        decisions: list[Decision] = []
        try:
            async with aclosing(self._decisions(request, proposal, choice)) as made:
                async for decision in made:
                    decisions.append(decision)
                    output = writer.append(decision.candidate)
                    if output.finished():
                        run.reports[request.index, choice] = report(
                            run.policy.method, decisions, run.policy.report == "trace"
                        )
                    yield output
                    if output.finished():
                        return
        except Stopped as stopped:
            yield writer.stop(stopped.reason)

    def _decisions(
        self, request: _Request, proposal: EngineProposal, choice: int
    ) -> AsyncGenerator[Decision, None]:
        seed = request.params.seed
        seeded = None if seed is None else random.Random(f"{seed}/{choice}").getrandbits(63)
        return request.run.decoder.run(request.run.policy, proposal, seeded)

    def _proposal(self, request: _Request, choice: int) -> EngineProposal:
        return EngineProposal(
            engine=self.inner,
            values=self.values,
            objective=request.run.objective,
            tokenizer=self._tokenizer(),
            prompt=request.prompt,
            prompt_text=request.prompt_text,
            cache_salt=request.cache_salt,
            params=request.params,
            request_id=request.request_id,
            choice=choice,
            reads_text=request.run.policy.report == "trace",
            options=request.options,
        )

    def _prompt_text(self, prompt: Any) -> str:
        text: str = prompt.get("prompt") or self._tokenizer().decode(prompt["prompt_token_ids"])
        return text

    def _tokenizer(self) -> Any:
        return self.renderer.get_tokenizer()


def _token_ids(prompt: Any) -> list[int]:
    if not isinstance(prompt, dict) or prompt.get("type") != "token":
        raise VLLMValidationError(
            "an alignment policy takes text prompts; images, audio and embeddings cannot be "
            "continued by token ids",
            parameter="alignment",
        )
    return list(prompt["prompt_token_ids"])


def _request_output(
    request: _Request,
    outputs: list[CompletionOutput],
    finished: bool,
    first: RequestOutput | None,
) -> RequestOutput:
    return RequestOutput(
        request_id=request.request_id,
        prompt=None,
        prompt_token_ids=request.prompt,
        prompt_logprobs=None if first is None else first.prompt_logprobs,
        outputs=outputs,
        finished=finished,
        lora_request=request.options.get("lora_request"),
        num_cached_tokens=None if first is None else first.num_cached_tokens,
    )
