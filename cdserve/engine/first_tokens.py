"""First tokens of the next block's candidates, drawn in the row that reads V of the prefix.

That row has the logits of the next token, so a block takes M engine steps, not M + 1. The candidate
that the search will continue is not known yet: each one draws the first tokens of all that may
continue it, by the seeds that those have. They are the tokens that the engine would draw itself, so
where there are none, the engine draws them and the answer is the same.
"""

import copy
import random
from collections.abc import Callable, Sequence

from cdserve.engine.readers import TableReader
from cdserve.engine.request import AlignedRequest
from cdserve.engine.vllm import CompletionOutput, EngineClient, SamplingParams
from cdserve.shared_table import SharedTable, Ticket
from cdserve.worker.request import MOST_FIRST_TOKENS, WorkerRequest

_SLOTS = 16384
_SEED_BITS = 56
_HANDLED = {
    *("n", "seed", "temperature", "top_p", "top_k", "min_p"),
    *("max_tokens", "ignore_eos", "stop", "stop_token_ids", "include_stop_str_in_output"),
    *("detokenize", "skip_special_tokens", "spaces_between_special_tokens"),
    *("output_kind", "output_text_buffer_length", "stream_interval", "skip_clone"),
    *("extra_args", "skip_reading_prefix_cache", "_eos_token_id", "_all_stop_token_ids"),
}
"""Sampling parameters that the worker's draw takes into account, or that change no draw."""


def possible(request: AlignedRequest) -> bool:
    """Whether the worker can draw first tokens for a request, as vLLM's sampler would.

    It cannot where a draw depends on more than the model's logits, or more than the token and V is
    read: steered proposals, statistics of tokens, logprobs, drafts, ends of blocks. It would be in
    vain where the search continues several prefixes.
    """
    context, params, default = request.context, request.params, SamplingParams()
    return (
        context.objective.reads_values
        and not context.objective.token_stats
        and not context.policy.block_ends
        and not request.worker_request.steered
        and context.drafts is None
        and not context.policy.keeps_several
        and params.temperature > 0.0
        and all(
            getattr(params, name) == getattr(default, name)
            for name in params.__struct_fields__
            if name not in _HANDLED
        )
    )


class FirstTokenReader(TableReader):
    """Reads first tokens of later requests."""

    def __init__(self) -> None:
        super().__init__(SharedTable(slots=_SLOTS, columns=MOST_FIRST_TOKENS))

    def read(self, ticket: Ticket, length: int) -> list[int]:
        """Tokens that follow the ticket's prefix of ``length`` tokens; empty if there are none."""
        row = self._table.read(ticket, length)
        return [] if row is None else [int(token) for token in row if token >= 0]


class FirstTokens:
    """First tokens of the candidates of one response.

    Args:
        engine: draws the candidates.
        reader: reads the first tokens that they draw.
        request: the prompt and its policy.
        seed: seed of a candidate by the number of its draw and its index; None for none.
    """

    def __init__(
        self,
        engine: EngineClient,
        reader: FirstTokenReader,
        request: AlignedRequest,
        seed: Callable[[int, int], int | None],
    ) -> None:
        self._possible = possible(request)
        self._reader = reader
        self._seed = seed
        self._drawn: dict[int, dict[tuple[int, ...], Sequence[int]]] = {}
        self._params = copy.copy(request.params)
        if self._possible:  # as vLLM does for each of its requests
            self._params.update_from_generation_config(
                engine.input_processor.generation_config_fields, engine.renderer.get_eos_token_id()
            )

    def seeds(self, draw: int, count: int) -> tuple[int, ...]:
        """Seeds of a draw's candidates, whose first tokens the draw before is to draw.

        Empty if they cannot be drawn.
        """
        if not self._possible or count > MOST_FIRST_TOKENS:
            return ()
        made = (self._seed(draw, i) for i in range(count))
        return tuple(random.getrandbits(_SEED_BITS) if s is None else s for s in made)

    def read(self, draw: int, asked: WorkerRequest, prefix: Sequence[int]) -> None:
        """Reads the first tokens that a request has drawn for a draw that would continue it."""
        if asked.first_tokens is not None:
            tokens = self._reader.read(asked.first_tokens.ticket, len(prefix))
            self._drawn.setdefault(draw, {})[tuple(prefix)] = tokens

    def take(self, draw: int, prefix: Sequence[int]) -> Sequence[int]:
        """First tokens of the draw that continues this prefix alone; there may be too few."""
        return self._drawn.pop(draw, {}).get(tuple(prefix), ())

    def output(self, token: int) -> CompletionOutput:
        """The engine's output of a request whose only token is this one, without stop strings."""
        by_eos = token == self._params.eos_token_id
        by_token = token in (self._params.stop_token_ids or ())
        return CompletionOutput(
            index=0,
            text="",
            token_ids=[token],
            cumulative_logprob=None,
            logprobs=None,
            finish_reason="stop" if by_eos or by_token else None,
            stop_reason=token if by_token and not by_eos else None,
        )
