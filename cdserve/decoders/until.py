"""Blocks that end where a step of the text ends, at a string or a token."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from cdserve.decoders.candidate import Prefix
from cdserve.policy import SearchPolicy

MAX_ENDS = 16
MAX_CHARACTERS = 100
MAX_TOKEN = 2**31 - 1

BlockEnd = (
    Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
    | Annotated[int, Field(ge=0, le=MAX_TOKEN)]
)


class UntilField(SearchPolicy):
    """Base of the policies of methods that select blocks."""

    until: list[BlockEnd] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_ENDS,
        description="Strings and token ids that end a block before m tokens, such as a blank line. "
        "The block ends with the token that completes one, and the response goes on. Without "
        "them, every block but the last has m tokens.",
    )

    @property
    def block_ends(self) -> Sequence[str | int]:
        return self.until or ()


def first_end(
    step: str,
    token_ids: Sequence[int],
    pieces: Sequence[str],
    strings: Sequence[str],
    ends: Sequence[int],
) -> tuple[int, str | int] | None:
    """Number of tokens up to the first that ends a block, and the string or token that does.

    Args:
        step: text before the tokens in which a string may begin.
        token_ids: the tokens.
        pieces: text that each token adds.
        strings: strings that end a block; of several completed by a token, the first is named.
        ends: tokens that end a block.
    """
    text = step
    for count, (token, piece) in enumerate(zip(token_ids, pieces, strict=True), 1):
        known = len(text)
        text += piece
        if token in ends:
            return count, token
        for string in strings:
            if text.find(string, max(0, known + 1 - len(string))) >= 0:
                return count, string
    return None


def step_text(prefix: Prefix) -> str:
    """Text of a response since the last block that a string or token ended."""
    texts: list[str] = []
    for block in reversed(prefix):
        if block.until is not None:
            break
        texts.append(block.text)
    return "".join(reversed(texts))
