"""An EngineClient that decodes requests under their alignment policy."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

from cdserve.engine.admission import Admission
from cdserve.engine.choices import Choice, SearchedChoice, SteeredChoice
from cdserve.engine.context import CONTEXT_KEY, AlignmentContext
from cdserve.engine.prefill import TokenSequence, prefill
from cdserve.engine.proxy import EngineProxy
from cdserve.engine.ranks import Ranks
from cdserve.engine.request import AlignedRequest
from cdserve.engine.resources import EngineResources
from cdserve.engine.vllm import (
    CompletionOutput,
    EngineDeadError,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    VLLMError,
    VLLMValidationError,
    current_platform,
    merge_async_iterators,
    random_uuid,
)
from cdserve.errors import CdserveError, OverloadError
from cdserve.failures import Details, hide_unexpected
from cdserve.observability import metrics
from cdserve.observability.tracing import ResponseSpans
from cdserve.policy import FIELD
from cdserve.worker.request import REQUEST_KEY, WorkerRequest

_POLL = 0.05
"""Seconds between checks for running requests while the server drains."""
_OUTPUTS = "vllm.v1.engine.async_llm"
"""Logger of the task that reads the engine's outputs."""
PASSED_ON = (
    *("lora_request", "trace_headers", "priority", "data_parallel_rank", "session_id"),
    *("reasoning_ended", "reasoning_parser_kwargs"),
)


class AlignedEngine(EngineProxy):
    """Runs requests with a policy through its decoder; passes all others to vLLM untouched.

    Args:
        resources: vLLM's engine with the readers and slots of this API server.
        admission: bounds the candidates of all requests.
        check_scorers: raises if an engine is dead that rewards need.
        details: whether clients see the text of unexpected exceptions.
    """

    def __init__(
        self,
        resources: EngineResources,
        admission: Admission,
        check_scorers: Callable[[], Awaitable[None]],
        details: Details,
    ) -> None:
        super().__init__(resources.engine)
        self.resources = resources
        self.admission = admission
        self._check_scorers = check_scorers
        self._details = details
        self._ranks = Ranks.of(self.inner.vllm_config.parallel_config)
        self.draining = False
        """Whether the server is shutting down."""
        # vLLM 0.32 computes them with LoRA layers sized for fewer rows, and crashes.
        lora = self.inner.vllm_config.lora_config is not None
        self._without_prompt_logprobs = lora and current_platform.is_cpu()
        self._loop = asyncio.get_running_loop()
        self._scoring = 0
        """Score requests under way."""
        self._live: dict[AlignedRequest, list[Choice]] = {}
        """Requests under way, each with its responses once they have begun."""

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As vLLM's. A request with a policy has an ``AlignmentContext`` in its ``extra_args``.

        Raises:
            VLLMValidationError: the request cannot be decoded under its policy.
        """
        if sampling_params.prompt_logprobs is not None and self._without_prompt_logprobs:
            raise VLLMValidationError(
                "log-probabilities of the prompt (prompt_logprobs, or echo with logprobs) cannot "
                "be computed on CPU with --enable-lora",
                parameter="prompt_logprobs",
            )
        extra_args = sampling_params.extra_args or {}
        context = extra_args.get(CONTEXT_KEY)
        if not isinstance(context, AlignmentContext):
            _check_reserved(extra_args)
            stream: AsyncGenerator[RequestOutput, None] = self.inner.generate(
                prompt, sampling_params, request_id, **options
            )
            several = sampling_params.n > 1 and sampling_params.prompt_logprobs is not None
            return _with_prompt_logprobs(stream) if several else stream
        params = sampling_params.clone()
        params.extra_args = {k: v for k, v in extra_args.items() if k != CONTEXT_KEY} or None
        token_ids = _token_ids(prompt)
        # V of the last token takes one more position than the text.
        params.max_tokens = min(
            params.max_tokens, self.model_config.max_model_len - 1 - len(token_ids)
        )
        if params.max_tokens < 1:
            raise VLLMValidationError(
                f"the prompt has {len(token_ids)} tokens; under an alignment policy at most "
                f"{self.model_config.max_model_len - 2} leave room for a response",
                parameter="prompt",
            )
        self._check_block_ends(context)
        return self._aligned(
            AlignedRequest(
                context=context,
                index=context.add_prompt(token_ids),
                inputs=_salted(prompt, context.worker_request),
                prompt=token_ids,
                prompt_text=self._prompt_text(prompt) if context.reads_text else "",
                params=params,
                request_id=request_id,
                engine_id=f"{request_id}-{random_uuid():.8}",
                options={k: v for k, v in options.items() if k in PASSED_ON and v is not None},
                parsed=context.tools or options.get("reasoning_parser_kwargs") is not None,
            )
        )

    def _check_block_ends(self, context: AlignmentContext) -> None:
        """Raises VLLMValidationError if a token that ends blocks is not in the vocabulary."""
        tokens = self.model_config.get_vocab_size()
        for i, end in enumerate(context.policy.block_ends):
            if isinstance(end, int) and end >= tokens:
                field = f"{FIELD}.until.{i}"
                raise VLLMValidationError(
                    f"{field} is {end}; the model's token ids are 0 to {tokens - 1}",
                    parameter=field,
                )

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """As vLLM's, before any work of a request; refuses all requests while the server drains.

        Raises:
            OverloadError: the server is shutting down.
        """
        self.check_draining()
        self.inner.check_admission(n, request_id)

    def check_draining(self) -> None:
        """Refuses a request that arrives while the server drains.

        Raises:
            OverloadError: the server is shutting down.
        """
        if self.draining:
            raise _shutting_down()

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Makes shutdown wait for the score request in this context."""
        self._scoring += 1
        try:
            yield
        finally:
            self._scoring -= 1

    @property
    def dead_error(self) -> BaseException:
        """The error of requests on a dead engine; shutdown stops the engine on purpose."""
        if self.draining:
            return _shutting_down()
        error: BaseException = self.inner.dead_error
        return error

    def shutdown(self, timeout: float | None = None) -> None:
        """As vLLM's, after waiting up to ``timeout`` seconds for the requests under way.

        vLLM's own draining waits for engine requests only; a search between two blocks has none.
        Requests that have not ended by then fail. Called outside the thread of the event loop.
        """
        self.draining = True
        logging.getLogger(_OUTPUTS).addFilter(_is_unexpected)
        ends = time.monotonic() + (timeout or 0.0)
        while self._busy and not self.inner.errored and time.monotonic() < ends:
            time.sleep(_POLL)
        self.inner.shutdown(timeout=max(0.0, ends - time.monotonic()))
        # vLLM may stop its output handler before the requests learn that the engine has ended.
        dead = EngineDeadError()
        self._loop.call_soon_threadsafe(self.inner.output_processor.propagate_error, dead)

    @property
    def _busy(self) -> bool:
        return bool(self._live or self._scoring)

    def close(self) -> None:
        """Removes what is shared with the worker."""
        self.resources.close()

    async def check_health(self) -> None:
        """As vLLM's; also checks the reward models that requests need."""
        await self.inner.check_health()
        await self._check_scorers()

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """As vLLM's, for the requests with these ids and their candidates."""
        ids = {request_id} if isinstance(request_id, str) else set(request_id)
        live = [choices for one, choices in self._live.items() if one.request_id in ids]
        alive = [i for choices in live for choice in choices for i in choice.alive]
        await self.inner.abort([*ids, *alive])

    async def _aligned(self, request: AlignedRequest) -> AsyncGenerator[RequestOutput, None]:
        method, count = request.context.policy.method, request.params.n
        final_only = request.params.output_kind == RequestOutputKind.FINAL_ONLY
        finished: dict[int, CompletionOutput] = {}
        failing = hide_unexpected(
            f"method {method!r}", self._details, request.engine_id, allowed=(VLLMError,)
        )
        with self._placed(request) as placed, failing, self._ending():
            read = await self._prompt_logprobs(placed)
            choices = self._live[placed] = [self._choice(placed, i) for i in range(count)]
            streams = merge_async_iterators(
                *(metrics.observe_outputs(method, one.outputs(), one.spans.end) for one in choices)
            )
            async with aclosing(streams) as blocks:
                async for index, outputs in blocks:
                    first = read or choices[index].first
                    for output in outputs:
                        if output.finished():
                            finished[index] = output
                        done = len(finished) == count
                        if not final_only:
                            yield _request_output(request, [output], done, first)
                        elif done:
                            ready = [finished[i] for i in sorted(finished)]
                            yield _request_output(request, ready, done, first)

    @contextmanager
    def _placed(self, request: AlignedRequest) -> Iterator[AlignedRequest]:
        """Places the request on a rank and registers it for shutdown and aborts."""
        candidates = request.context.policy.concurrent * request.params.n
        with self._ranks.held(request.options, candidates) as options:
            placed = replace(request, options=options)
            self._live[placed] = []
            try:
                yield placed
            finally:
                del self._live[placed]

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Turns the error of an engine that shutdown stopped into an error about the shutdown.

        Raises:
            OverloadError: the engine was stopped before the response had ended.
        """
        try:
            yield
        except EngineDeadError as error:
            if self.draining:
                raise _shutting_down() from error
            raise

    async def _prompt_logprobs(self, request: AlignedRequest) -> RequestOutput | None:
        """The prompt's log-probabilities, if the client asks for them.

        One engine request computes them for all responses, before these begin. No deadline ends it:
        the client gets them even if no time is left for a first token.

        Raises:
            CdserveError: the engine stopped the request.
        """
        if request.params.prompt_logprobs is None:
            return None
        asked = request.context.worker_request
        prompt = TokenSequence(
            token_ids=request.prompt,
            cache_salt=request.cache_salt,
            worker_request=asked,
            options=request.options,
        )
        read = await prefill(
            self.inner,
            prompt,
            asked,
            f"{request.engine_id}.prompt",
            cached=False,
            prompt_logprobs=request.params.prompt_logprobs,
        )
        if len(read.prompt_logprobs or ()) != len(request.prompt):
            raise CdserveError("the engine was stopped before it had read the prompt")
        return read

    def _choice(self, request: AlignedRequest, index: int) -> Choice:
        search = request.context.decoder.run
        spans = ResponseSpans(
            request.context.policy.method,
            request.request_id,
            index,
            request.options.get("trace_headers"),
        )
        if search is None:
            return SteeredChoice(self.resources, request, index, spans)
        return SearchedChoice(self.resources, request, index, spans, search)

    def _prompt_text(self, prompt: Any) -> str:
        text: str = prompt.get("prompt") or self.resources.tokenizer.decode(
            prompt["prompt_token_ids"]
        )
        return text


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Whether a log record is about more than the end of a stopped engine."""
    return not (record.exc_info and isinstance(record.exc_info[1], EngineDeadError))


def _shutting_down() -> OverloadError:
    return OverloadError("this server is shutting down", status=503, retry_after=1)


async def _with_prompt_logprobs(
    stream: AsyncGenerator[RequestOutput, None],
) -> AsyncGenerator[RequestOutput, None]:
    """Repeats the prompt's log-probabilities in every output of a request with several choices.

    vLLM sends them once per choice, and loses those of a choice whose first output is merged into
    a later output of another choice. An echoed prompt would then have none.
    """
    logprobs: Any = None
    async with aclosing(stream):
        async for output in stream:
            logprobs = logprobs or output.prompt_logprobs
            output.prompt_logprobs = logprobs
            yield output


def salted(cache_salt: str | None, worker_request: WorkerRequest) -> str | None:
    """The cache salt of requests with these members.

    Members write KV of their own, so their requests do not share the prefix cache of requests
    without them.
    """
    members = " ".join(sorted(worker_request.members))
    return f"members {members}/{cache_salt or ''}" if members else cache_salt


def _salted(prompt: Any, worker_request: WorkerRequest) -> Any:
    if not isinstance(prompt, dict):
        return prompt
    salt = salted(prompt.get("cache_salt"), worker_request)
    return prompt if salt is None else {**prompt, "cache_salt": salt}


def _check_reserved(extra_args: Mapping[str, Any]) -> None:
    """Raises if a client wrote one of cdserve's keys into ``vllm_xargs``."""
    for key in {REQUEST_KEY, CONTEXT_KEY} & extra_args.keys():
        raise VLLMValidationError(
            f"vllm_xargs.{key} is reserved; use the field 'alignment'",
            parameter=f"vllm_xargs.{key}",
        )


def _token_ids(prompt: Any) -> list[int]:
    if not isinstance(prompt, dict) or prompt.get("type") != "token":
        raise VLLMValidationError(
            "an alignment policy takes text prompts; images, audio and embeddings cannot be "
            "continued by token ids",
            parameter="alignment",
        )
    return list(prompt["prompt_token_ids"])


def _request_output(
    request: AlignedRequest,
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
