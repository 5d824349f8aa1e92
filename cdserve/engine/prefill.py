"""Given tokens run through the engine once, for what the worker computes on the way."""

from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdserve.engine.vllm import (
    EngineClient,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    tokens_input,
)
from cdserve.worker.request import WorkerRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """Tokens to prefill, with what the requests that drew them gave the engine.

    Attributes:
        token_ids: the prompt and the response so far.
        start: tokens before those of interest: the prompt's, or also those of earlier blocks.
        cache_salt: salt of the prefix cache that may hold the sequence.
        worker_request: that of those requests, without tickets. Members that wrote KV into the
            cached prefix must run again for its continuation.
        options: further arguments of ``EngineClient.generate``, such as the LoRA adapter.
    """

    token_ids: Sequence[int]
    start: int = 0
    cache_salt: str | None = None
    worker_request: WorkerRequest = field(default_factory=WorkerRequest)
    options: Mapping[str, Any] = field(default_factory=dict)


async def prefill(
    engine: EngineClient,
    sequence: TokenSequence,
    asked: WorkerRequest,
    request_id: str,
    *,
    cached: bool = True,
    prompt_logprobs: int | None = None,
) -> RequestOutput:
    """Runs a sequence through the engine in a request that draws one token.

    Args:
        asked: what the worker computes on the way.
        cached: whether to skip the part that the prefix cache holds.
        prompt_logprobs: number of alternatives to each token whose log-probabilities are returned,
            as in vLLM's ``SamplingParams``; None for no log-probabilities.
    """
    params = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        detokenize=prompt_logprobs is not None,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=asked.added_to(None),
        prompt_logprobs=prompt_logprobs,
        skip_reading_prefix_cache=not cached,
    )
    prompt = tokens_input(list(sequence.token_ids), cache_salt=sequence.cache_salt)
    return await final_output(engine.generate(prompt, params, request_id, **sequence.options))


async def final_output(outputs: AsyncIterable[RequestOutput]) -> RequestOutput:
    """The last output of an engine request."""
    last: RequestOutput | None = None
    async for output in outputs:
        last = output
    assert last is not None  # vLLM ends every request with an output
    return last
