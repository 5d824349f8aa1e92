"""Blocks as the engine draws them: parameters of an engine request, and its output as a block."""

import copy
from dataclasses import dataclass

from cdserve.decoders import Candidate, Prefix
from cdserve.decoders.until import step_text
from cdserve.engine.request import AlignedRequest
from cdserve.engine.response import cumulative_logprob
from cdserve.engine.until import Until
from cdserve.engine.vllm import (
    CompletionOutput,
    RequestOutputKind,
    SamplingParams,
    TokenizerLike,
    detokenizer,
)
from cdserve.worker.request import NOTHING, WorkerRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStart:
    """The beginning of a block."""

    token_ids: list[int]
    """The prompt and the response so far."""
    text: str
    """The response so far; empty where no text is read."""
    left: int
    """Tokens left for the response."""
    length: int
    """Length of the block in tokens, at most."""
    budget: float | None
    """KL budget of the block's steering, in nats; None for no bound."""
    until: Until | None
    """Strings and tokens that end the block; None for a whole response."""
    step: str
    """Text of the response in which a string of ``until`` may begin."""
    greedy: bool = False
    """Whether the most likely tokens are drawn."""
    first: int | None = None
    """The block's first token, if the draw before has drawn it."""
    ended: CompletionOutput | None = None
    """The engine's output, if the first token ends the response: it takes no request."""
    next_seeds: tuple[int, ...] = ()
    """Seeds of the candidates of the next draw whose first tokens this one draws."""


class Blocks:
    """The blocks of one response.

    Args:
        request: the prompt and its policy.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, request: AlignedRequest, tokenizer: TokenizerLike) -> None:
        context, ends = request.context, request.context.policy.block_ends
        self._prompt = request.prompt
        self._params = request.params
        self._tokenizer = tokenizer
        self._until = Until(ends, tokenizer) if ends else None
        self._watched = context.drafts is not None
        self._reads_text = (
            context.policy.traced
            or context.reads_text
            or context.extractor is not None
            or bool(request.params.stop)
            or any(isinstance(end, str) for end in ends)
        )

    def start(self, prefix: Prefix, max_tokens: int | None, budget: float | None) -> BlockStart:
        """The beginning of a block after a prefix.

        Args:
            prefix: the response so far.
            max_tokens: length of the block at most; None for the rest of the response.
            budget: nats that steering it may cost; None for no bound.
        """
        written = [token for candidate in prefix for token in candidate.token_ids]
        left = self._params.max_tokens - len(written)
        return BlockStart(
            token_ids=[*self._prompt, *written],
            text="".join(candidate.text for candidate in prefix),
            left=left,
            length=left if max_tokens is None else min(max_tokens, left),
            budget=budget,
            until=None if max_tokens is None else self._until,
            step=step_text(prefix),
        )

    def params(self, start: BlockStart, asked: WorkerRequest, seed: int | None) -> SamplingParams:
        """Sampling parameters of the engine request of a candidate.

        Args:
            start: the beginning of the block.
            asked: what the worker computes on the way.
            seed: seed of the candidate; None for none.
        """
        params = self._min_tokens_left(start)
        params.n = 1
        params.seed = seed
        params.max_tokens = start.length - (start.first is not None)
        if asked.values is not None or asked.token_stats is not None:
            # The row that samples one token more knows V and log p of the last.
            params.max_tokens += 1
        if asked != NOTHING:
            params.extra_args = asked.added_to(params.extra_args)
        # vLLM refuses a minimum above the maximum.
        params.min_tokens = min(params.min_tokens, start.length)
        if start.until is not None:
            start.until.add_to(params)
        params.output_kind = RequestOutputKind.FINAL_ONLY
        params.detokenize = bool(params.stop) or params.logprobs is not None
        if self._watched:
            params.output_kind = RequestOutputKind.CUMULATIVE
            params.detokenize = True
        if start.greedy:
            params.temperature, params.seed, params.logprobs = 0.0, None, None
            params.top_p, params.top_k, params.min_p = 1.0, 0, 0.0
        params.skip_clone = True
        without_prompt_logprobs(params)
        return params

    def read(self, output: CompletionOutput, start: BlockStart) -> Candidate:
        """The engine's output cut to the block, with stop strings that begin before the block."""
        token_ids = list(output.token_ids)[: start.length]
        ended = output.finish_reason if len(output.token_ids) <= start.length else None
        # A stop string is looked for below, where the text before the block is known too.
        by_token = ended == "stop" and not isinstance(output.stop_reason, str)
        until = None
        if start.until is not None:
            end = start.until.end(start.token_ids, start.step, token_ids, self._params)
            if end is not None:
                by_token = by_token and end[0] == len(token_ids) and self._ends(output, start.until)
                ended = "stop" if by_token else None
                token_ids, until = token_ids[: end[0]], end[1]
        text, stop, withheld = "", None, 0
        if self._reads_text:
            reader = detokenizer(self._tokenizer, start.token_ids, self._min_tokens_left(start))
            reader.output_text = start.text
            stop = reader.update(token_ids, by_token)
            token_ids = list(reader.output_token_ids)
            text = reader.output_text[len(start.text) :]
            withheld = max(0, len(start.text) - len(reader.output_text))
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
            withheld=withheld,
            until=until if finish_reason != "stop" else None,
            logprobs=logprobs,
            cumulative_logprob=cumulative_logprob(logprobs, token_ids)
            if logprobs is not None and _samples_raw(self._params)
            else None,
        )

    def _ends(self, output: CompletionOutput, until: Until) -> bool:
        """Whether the token that stopped a candidate ends the response, not only its block."""
        token, stops = output.stop_reason, self._params.stop_token_ids or ()
        return token in stops or token not in until.token_ids

    def _min_tokens_left(self, start: BlockStart) -> SamplingParams:
        """The client's parameters, with ``min_tokens`` reduced by the tokens already written."""
        params = copy.copy(self._params)
        written = self._params.max_tokens - start.left
        params.min_tokens = max(0, self._params.min_tokens - written)
        return params


def without_prompt_logprobs(params: SamplingParams) -> None:
    """Turns off log-probabilities of the prompt, which would bypass the prefix cache.

    ``AlignedEngine`` reads them in a separate engine request.
    """
    if params.prompt_logprobs is not None:
        params.prompt_logprobs = None
        params.skip_reading_prefix_cache = False


def nothing(params: SamplingParams) -> CompletionOutput:
    """The output of a candidate that the deadline left no time for."""
    return CompletionOutput(
        index=0,
        text="",
        token_ids=[],
        cumulative_logprob=None,
        logprobs=None if params.logprobs is None else [],
        finish_reason="abort",
    )


def _samples_raw(params: SamplingParams) -> bool:
    """Whether tokens are drawn from the raw distribution that vLLM's logprobs describe."""
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
