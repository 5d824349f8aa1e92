"""AlignedEngine: an EngineClient that decodes towards a reward where a request asks for it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

from cdserve.config import Settings
from cdserve.engine.admission import Admission, none_held
from cdserve.engine.choices import AlignedRequest, Choice, SearchedChoice, SteeredChoice
from cdserve.engine.likelihoods import Likelihoods
from cdserve.engine.proposal import EngineProposal
from cdserve.engine.proxy import EngineProxy
from cdserve.engine.ranks import Ranks
from cdserve.engine.run import AlignmentRun
from cdserve.engine.slots import Slots
from cdserve.engine.steering import Paths
from cdserve.engine.values import Values, one_token, refuse_reserved, wanting
from cdserve.engine.vllm import (
    CompletionOutput,
    EngineClient,
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
from cdserve.failures import hidden
from cdserve.launch.api_servers import ApiServer
from cdserve.launch.reward_models import RewardModels
from cdserve.observability import metrics
from cdserve.observability.tracing import ResponseSpans
from cdserve.worker.request import REQUEST_KEY

_POLL = 0.05
"""Seconds between two looks at what still runs, while the server drains."""
PASSED_ON = ("lora_request", "trace_headers", "priority", "data_parallel_rank", "session_id")


class AlignedEngine(EngineProxy):
    """Runs requests with a policy through its decoder; hands all others to vLLM untouched.

    Args:
        inner: vLLM's engine.
        values: reads V out of it.
        paths: reads the KL of steered requests out of it.
        likelihoods: reads log-likelihoods of responses out of it.
        models: the reward models that score beside it.
        settings: the operator's.
        server: what this API server has in common with others, where there are several.
    """

    def __init__(
        self,
        inner: EngineClient,
        values: Values,
        paths: Paths,
        likelihoods: Likelihoods,
        models: RewardModels,
        settings: Settings,
        server: ApiServer | None = None,
    ) -> None:
        super().__init__(inner)
        sequences: int = inner.vllm_config.scheduler_config.max_num_seqs
        running = settings.admission.max_running or max(1, sequences * 3 // 4)
        self._slots = Slots(running, server.demand if server else None)
        self.admission = Admission(
            running + settings.admission.max_waiting,
            keys=list(settings.keys),
            held=server.held if server else none_held(len(settings.keys)),
        )
        self._ranks = Ranks.of(inner.vllm_config.parallel_config)
        self.values = values
        self.likelihoods = likelihoods
        self._paths = paths
        self._models = models
        self._details = settings.error_details
        self.draining = False
        """Whether the server is shutting down."""
        # vLLM 0.32 would compute them beside other rows, with LoRA layers made for fewer, and die.
        lora = inner.vllm_config.lora_config is not None
        self._without_prompt_logprobs = lora and current_platform.is_cpu()
        self._loop = asyncio.get_running_loop()
        self._scoring = 0
        """Score requests under way."""
        self._live: dict[AlignedRequest, list[Choice]] = {}
        """The requests under way, each with its responses once they have begun."""

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As vLLM's. A policy rides as an AlignmentRun in ``extra_args``.

        Raises:
            VLLMValidationError: the request cannot be decoded under its policy.
        """
        if sampling_params.prompt_logprobs is not None and self._without_prompt_logprobs:
            raise VLLMValidationError(
                "log-probabilities of the prompt (prompt_logprobs, or echo with logprobs) cannot "
                "be computed on CPU with --enable-lora",
                parameter="prompt_logprobs",
            )
        run = (sampling_params.extra_args or {}).get(REQUEST_KEY)
        if not isinstance(run, AlignmentRun):
            refuse_reserved(sampling_params)
            stream: AsyncGenerator[RequestOutput, None] = self.inner.generate(
                prompt, sampling_params, request_id, **options
            )
            several = sampling_params.n > 1 and sampling_params.prompt_logprobs is not None
            return _with_prompt_logprobs(stream) if several else stream
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
            AlignedRequest(
                run=run,
                index=run.begin(token_ids),
                inputs=_salted(prompt, run.steering),
                prompt=token_ids,
                prompt_text=self._prompt_text(prompt) if run.objective.reads_text else "",
                params=params,
                request_id=request_id,
                engine_id=f"{request_id}-{random_uuid():.8}",
                options={k: v for k, v in options.items() if k in PASSED_ON and v is not None},
            )
        )

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """As vLLM's, before any work of a request; and there is none once the server drains.

        Raises:
            OverloadError: the server is shutting down.
        """
        self.check_draining()
        self.inner.check_admission(n, request_id)

    def check_draining(self) -> None:
        """Refuses a request that comes while the server drains.

        Raises:
            OverloadError: the server is shutting down.
        """
        if self.draining:
            raise _shutting_down()

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Has shutdown wait for what is scored meanwhile."""
        self._scoring += 1
        try:
            yield
        finally:
            self._scoring -= 1

    @property
    def dead_error(self) -> BaseException:
        """What a request gets that finds the engine dead. Shutdown stops the engine on purpose."""
        if self.draining:
            return _shutting_down()
        error: BaseException = self.inner.dead_error
        return error

    def shutdown(self, timeout: float | None = None) -> None:
        """As vLLM's, once what is under way has ended, for at most ``timeout`` seconds.

        vLLM's own draining ends the engine's requests; a search would find no engine for its next.
        What has not ended by then is answered with an error. Called in another thread than the
        event loop's.
        """
        self.draining = True
        ends = time.monotonic() + (timeout or 0.0)
        while self._busy and not self.inner.errored and time.monotonic() < ends:
            time.sleep(_POLL)
        self.inner.shutdown(timeout=max(0.0, ends - time.monotonic()))
        # vLLM may stop its output handler before that has told the requests of the engine's end.
        dead = EngineDeadError()
        self._loop.call_soon_threadsafe(self.inner.output_processor.propagate_error, dead)

    @property
    def _busy(self) -> bool:
        return bool(self._live or self._scoring)

    def close(self) -> None:
        """Removes what is shared with the worker."""
        self.values.close()
        self._paths.close()
        self.likelihoods.close()

    async def check_health(self) -> None:
        """As vLLM's; a reward model that requests fail without has to be alive too."""
        await self.inner.check_health()
        await self._models.check_health()

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """As vLLM's: ends all requests of these ids. Their candidates are aborted with them."""
        ids = {request_id} if isinstance(request_id, str) else set(request_id)
        live = [choices for one, choices in self._live.items() if one.request_id in ids]
        alive = [i for choices in live for choice in choices for i in choice.alive]
        await self.inner.abort([*ids, *alive])

    async def _aligned(self, request: AlignedRequest) -> AsyncGenerator[RequestOutput, None]:
        method, count = request.run.policy.method, request.params.n
        final_only = request.params.output_kind == RequestOutputKind.FINAL_ONLY
        finished: dict[int, CompletionOutput] = {}
        failing = hidden(
            f"method {method!r}", self._details, request.engine_id, allowed=(VLLMError,)
        )
        with self._placed(request) as placed, failing, self._ending():
            read = await self._prompt_logprobs(placed)
            choices = self._live[placed] = [self._choice(placed, i) for i in range(count)]
            streams = merge_async_iterators(
                *(metrics.observed(method, one.outputs(), one.spans.end) for one in choices)
            )
            async with aclosing(streams) as outputs:
                async for index, output in outputs:
                    if output.finished():
                        finished[index] = output
                    done = len(finished) == count
                    if done or not final_only:
                        ready = [finished[i] for i in sorted(finished)] if final_only else [output]
                        first = read or choices[index].first
                        yield _request_output(request, ready, done, first)

    @contextmanager
    def _placed(self, request: AlignedRequest) -> Iterator[AlignedRequest]:
        """The request on one rank. Shutdown waits for it; an abort finds its candidates."""
        candidates = request.run.policy.width * request.params.n
        with self._ranks.held(request.options, candidates) as options:
            placed = replace(request, options=options)
            self._live[placed] = []
            try:
                yield placed
            finally:
                del self._live[placed]

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Tells of shutdown where the engine's end is what shutdown did.

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
        """The prompt's log-probabilities, where the client asks for them.

        One engine request reads them for all responses, before these begin. No deadline ends it:
        they are the client's even where no time is left to draw a token.

        Raises:
            CdserveError: the engine ended the request from outside.
        """
        if request.params.prompt_logprobs is None:
            return None
        read = await one_token(
            self.inner,
            request.prompt,
            wanting(None, **request.run.steering),
            f"{request.engine_id}.prompt",
            request.inputs.get("cache_salt"),
            request.options,
            cached=False,
            prompt_logprobs=request.params.prompt_logprobs,
        )
        if len(read.prompt_logprobs or ()) != len(request.prompt):
            raise CdserveError("the engine was stopped before it had read the prompt")
        return read

    def _choice(self, request: AlignedRequest, index: int) -> Choice:
        search = request.run.decoder.run
        spans = ResponseSpans(
            request.run.policy.method,
            request.request_id,
            index,
            request.options.get("trace_headers"),
        )
        if search is None:
            return SteeredChoice(
                request,
                index,
                spans,
                self.inner,
                self.values,
                self._paths,
                self.likelihoods,
                self._slots,
            )
        proposal = EngineProposal(
            engine=self.inner,
            values=self.values,
            paths=self._paths,
            likelihoods=self.likelihoods,
            slots=self._slots,
            run=request.run,
            tokenizer=self._tokenizer(),
            prompt=request.prompt,
            prompt_text=request.prompt_text,
            messages=request.run.messages(request.index),
            cache_salt=request.inputs.get("cache_salt"),
            params=request.params,
            engine_id=request.engine_id,
            choice=index,
            options=request.options,
            spans=spans,
        )
        return SearchedChoice(request, search, proposal, index, spans, self._tokenizer())

    def _prompt_text(self, prompt: Any) -> str:
        text: str = prompt.get("prompt") or self._tokenizer().decode(prompt["prompt_token_ids"])
        return text

    def _tokenizer(self) -> Any:
        return self.renderer.get_tokenizer()


def _shutting_down() -> OverloadError:
    return OverloadError("this server is shutting down", status=503, retry_after=1)


async def _with_prompt_logprobs(
    stream: AsyncGenerator[RequestOutput, None],
) -> AsyncGenerator[RequestOutput, None]:
    """vLLM's outputs of several choices, each with the prompt's log-probabilities.

    vLLM sends them once a choice, and loses a choice's where its first output is merged into a
    later one of another choice. Then an echoed prompt has none.
    """
    known: Any = None
    async with aclosing(stream):
        async for output in stream:
            known = known or output.prompt_logprobs
            output.prompt_logprobs = known
            yield output


def salted(cache_salt: str | None, steering: Mapping[str, Any]) -> str | None:
    """The salt, with a prefix cache apart where members write KV beside the base's.

    What requests without members leave in the cache has none of theirs.
    """
    members = sorted({*steering.get("mix", ()), *steering.get("models", ())} - {"base"})
    return f"members {' '.join(members)}/{cache_salt or ''}" if members else cache_salt


def _salted(prompt: Any, steering: Mapping[str, Any]) -> Any:
    if not isinstance(prompt, dict):
        return prompt
    salt = salted(prompt.get("cache_salt"), steering)
    return prompt if salt is None else {**prompt, "cache_salt": salt}


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
