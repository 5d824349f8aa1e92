"""Turns accepted blocks of tokens into vLLM's output objects."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cdserve.decoders import Candidate
from cdserve.engine.vllm import (
    CompletionOutput,
    Logprob,
    RequestOutputKind,
    SamplingParams,
    TokenizerLike,
    detokenizer,
)


def cumulative_logprob(logprobs: Sequence[Any], token_ids: Sequence[int]) -> float:
    """log p of the tokens in nats, from vLLM's logprobs."""
    total: float = sum(row[token].logprob for row, token in zip(logprobs, token_ids, strict=True))
    return total


class ResponseWriter:
    """Detokenises accepted blocks with vLLM's own detokenizer, which also finds stop strings.

    Args:
        index: index of the choice.
        prompt: prompt token ids.
        params: the client's sampling parameters.
        parsed: whether vLLM parses a stream for tool calls or reasoning.
    """

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        params: SamplingParams,
        tokenizer: TokenizerLike,
        *,
        parsed: bool = False,
    ) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._kind = params.output_kind
        self._by_token = parsed and self._kind == RequestOutputKind.DELTA
        self._detokenizer = detokenizer(tokenizer, list(prompt), params)
        self._logprobs: Any = None if params.logprobs is None else []
        self._cumulative_logprob = None if params.logprobs is None else 0.0

    def append(self, candidate: Candidate) -> list[CompletionOutput]:
        """Returns the outputs of one more accepted block: the delta, or all text so far.

        A parsed stream has one output per token, as in plain decoding: some clients read only the
        name of a call that arrives whole. Otherwise there is one output.
        """
        outputs: list[CompletionOutput] = []
        for part in _tokens(candidate) if self._by_token else (candidate,):
            outputs.append(self._append(part))
            if outputs[-1].finished():
                break
        return outputs

    def _append(self, candidate: Candidate) -> CompletionOutput:
        ended = candidate.finish_reason == "stop"
        by_token = ended and not isinstance(candidate.stop_reason, str)
        written = self._detokenizer.num_output_tokens()
        stop = self._detokenizer.update(list(candidate.token_ids), by_token)
        token_ids = list(self._detokenizer.output_token_ids)
        new = len(token_ids) - written
        logprobs = None
        if self._logprobs is not None and self._cumulative_logprob is not None:
            logprobs = candidate.logprobs[:new]
            self._logprobs = [*self._logprobs, *logprobs]
            self._cumulative_logprob += cumulative_logprob(logprobs, token_ids[written:])
        finish_reason = "stop" if stop is not None else candidate.finish_reason
        if finish_reason == "deadline":
            finish_reason = "length"  # the value that OpenAI's clients expect
        delta = self._kind == RequestOutputKind.DELTA
        return CompletionOutput(
            index=self._index,
            text=self._detokenizer.get_next_output_text(finish_reason is not None, delta),
            token_ids=token_ids[written:] if delta else token_ids,
            cumulative_logprob=self._cumulative_logprob,
            logprobs=logprobs if delta else self._logprobs,
            finish_reason=finish_reason,
            stop_reason=stop if stop is not None else candidate.stop_reason,
        )

    def stop(self, reason: str) -> CompletionOutput:
        """Returns the output of a response that the engine stopped: the text so far."""
        delta = self._kind == RequestOutputKind.DELTA
        return CompletionOutput(
            index=self._index,
            text=self._detokenizer.get_next_output_text(True, delta),
            token_ids=[] if delta else list(self._detokenizer.output_token_ids),
            cumulative_logprob=self._cumulative_logprob,
            logprobs=self._logprobs if self._logprobs is None or not delta else [],
            finish_reason=reason,
        )

    def refuse(self, text: str) -> CompletionOutput:
        """Returns the only output of a response that is replaced by this text.

        The text is certain, so the log-probabilities are those of probability 1.
        """
        token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        certain = [
            {token: Logprob(0.0, rank=1, decoded_token=self._tokenizer.decode([token]))}
            for token in token_ids
        ]
        return CompletionOutput(
            index=self._index,
            text=text,
            token_ids=token_ids,
            cumulative_logprob=self._cumulative_logprob,
            logprobs=None if self._logprobs is None else certain,
            finish_reason="stop",
        )


def _tokens(candidate: Candidate) -> Iterator[Candidate]:
    """The candidate as blocks of one token; as it is if it has none."""
    last = max(0, len(candidate.token_ids) - 1)
    for i in range(last):
        yield replace(
            candidate,
            token_ids=candidate.token_ids[i : i + 1],
            logprobs=candidate.logprobs and candidate.logprobs[i : i + 1],
            finish_reason=None,
            stop_reason=None,
        )
    yield replace(
        candidate,
        token_ids=candidate.token_ids[last:],
        logprobs=candidate.logprobs and candidate.logprobs[last:],
    )
