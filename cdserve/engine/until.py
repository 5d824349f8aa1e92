"""Ends of blocks at strings and tokens that a policy names in ``until``."""

import copy
from collections.abc import Sequence

from cdserve.decoders.until import first_end
from cdserve.engine.vllm import SamplingParams, TokenizerLike, detokenizer


class Until:
    """Strings and tokens that end a block.

    A string is looked for in the text of the response since the last block that one of them ended,
    so it may begin in a block that has its full length. A block ends with the token that completes
    a string; characters of that token after the string belong to the block.

    Args:
        ends: strings and token ids.
        tokenizer: the model's tokenizer.
    """

    def __init__(self, ends: Sequence[str | int], tokenizer: TokenizerLike) -> None:
        self.strings = [end for end in ends if isinstance(end, str)]
        self.token_ids = [end for end in ends if isinstance(end, int)]
        self._tokenizer = tokenizer

    def add_to(self, params: SamplingParams) -> None:
        """Lets vLLM stop a candidate at the end of its block.

        vLLM knows the text of the candidate only: a string that begins before it is found
        afterwards, by ``end``. So is what comes before ``min_tokens``, up to which vLLM does not
        look for strings, and would not draw tokens that stop.
        """
        params.stop = [*params.stop, *self.strings]
        if not params.min_tokens:
            params.stop_token_ids = [*(params.stop_token_ids or ()), *self.token_ids]

    def end(
        self, prefix: list[int], step: str, token_ids: Sequence[int], params: SamplingParams
    ) -> tuple[int, str | int] | None:
        """Number of tokens of a block, and the string or token that ends it; None if none does.

        Args:
            prefix: token ids of the prompt and the response before the block.
            step: text of the response in which a string may begin, as ``step_text`` gives it.
            token_ids: tokens drawn.
            params: the client's sampling parameters, which determine the text.
        """
        pieces = self._pieces(prefix, token_ids, params) if self.strings else [""] * len(token_ids)
        return first_end(step, token_ids, pieces, self.strings, self.token_ids)

    def _pieces(
        self, prefix: list[int], token_ids: Sequence[int], params: SamplingParams
    ) -> list[str]:
        """Text that each token adds."""
        plain = copy.copy(params)
        plain.stop = []
        reader = detokenizer(self._tokenizer, prefix, plain)
        pieces = []
        for token in token_ids:
            written = len(reader.output_text)
            reader.update([token], False)
            pieces.append(reader.output_text[written:])
        return pieces
