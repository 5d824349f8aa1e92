"""A proposal on a ``TinyModel``, and the exact distribution of a decoder's responses to it."""

import math
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import product

from cdserve.decoders import Candidate, Comparison, Decision, Outlook, Prefix, Proposal, Score
from cdserve.testing.model import TinyModel

Tokens = tuple[int, ...]
Decode = Callable[[Proposal], AsyncGenerator[Decision, None]]


class TinyProposal:
    """A ``Proposal`` that draws from a model and scores by its V, under the name ``value``.

    Args:
        model: the model.
        max_tokens: most tokens of a response.
        seed: seeds the draws.
    """

    def __init__(self, model: TinyModel, max_tokens: int, seed: int = 0) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._random = random.Random(seed)
        self.deadline_passed = False

    async def sample(
        self,
        prefixes: Sequence[Prefix],
        count: int,
        max_tokens: int | None,
        budget: float | None = None,
    ) -> Sequence[Candidate]:
        written = [_tokens(prefix) for prefix in prefixes for _ in range(count)]
        lengths = [self._length(tokens, max_tokens) for tokens in written]
        blocks = self._draw(lengths)
        return [self._candidate(*drawn) for drawn in zip(written, blocks, strict=True)]

    async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        totals = [
            self._model.value(tokens, tokens_left=self._max_tokens - len(tokens))
            for tokens in map(_tokens, prefixes)
        ]
        return [Score(total, {"value": total}) for total in totals]

    async def compare(
        self, pairs: Sequence[tuple[Candidate, Candidate]]
    ) -> Sequence[Comparison | None]:
        """The judge prefers the higher V."""
        scores = await self.score([(one,) for pair in pairs for one in pair])
        compared = zip(scores[::2], scores[1::2], strict=True)
        gains = [a.total - b.total for a, b in compared]
        return [Comparison(0.5 + 0.5 * ((d > 0) - (d < 0)), agreed=True) for d in gains]

    async def score_final(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        return await self.score(prefixes)

    async def roll_out(self, prefixes: Sequence[Prefix], max_tokens: int) -> Sequence[Candidate]:
        likely = self._model.tokens[self._model.probabilities.index(max(self._model.probabilities))]
        ends = likely == self._model.tokens[-1]
        written = [_tokens(prefix) for prefix in prefixes]
        lengths = [1 if ends else self._length(tokens, max_tokens) for tokens in written]
        return [
            self._candidate(tokens, (likely,) * length)
            for tokens, length in zip(written, lengths, strict=True)
        ]

    def outlook(self, tokens: int) -> Outlook:
        """No outlook: nothing is measured on held-out responses."""
        raise NotImplementedError

    @property
    def score_variance(self) -> float | None:
        return None

    def places(self, most: int) -> int:
        return most

    async def grow(self, prefixes: Sequence[Prefix], max_tokens: int) -> Sequence[Candidate]:
        return await self.sample(prefixes, 1, max_tokens)

    async def draw(self, index: int, budget: float | None = None) -> Candidate:
        (candidate,) = await self.sample([()], 1, None, budget)
        return candidate

    async def abandon(self) -> None:
        """Does nothing: no candidate takes time."""

    def _length(self, written: Tokens, max_tokens: int | None) -> int:
        left = self._max_tokens - len(written)
        return left if max_tokens is None else min(left, max_tokens)

    def _draw(self, lengths: Sequence[int]) -> Sequence[Tokens]:
        return [self._block(length) for length in lengths]

    def _block(self, length: int) -> Tokens:
        block: Tokens = ()
        while len(block) < length and self._model.tokens[-1] not in block:
            block += tuple(self._random.choices(self._model.tokens, self._model.probabilities))
        return block

    def _candidate(self, written: Tokens, block: Tokens) -> Candidate:
        ended = block[-1:] == self._model.tokens[-1:]
        at_limit = len(written) + len(block) == self._max_tokens
        return Candidate(
            token_ids=block,
            finish_reason="stop" if ended else "length" if at_limit else None,
            cumulative_logprob=math.fsum(self._model.log_p_of(block)),
        )


def distribution(decode: Decode, model: TinyModel, max_tokens: int) -> dict[Tokens, float]:
    """The probability of each response: ``decode`` runs once for every way its draws can fall.

    Args:
        decode: runs a decoder on a proposal. Randomness other than the proposal's has to be fixed.
        model: few tokens, since every sequence of draws is tried.
        max_tokens: most tokens of a response; few, too.
    """
    responses: defaultdict[Tokens, float] = defaultdict(float)
    tapes: list[list[Tokens]] = [[]]
    while tapes:
        tape = tapes.pop()
        try:
            response = _response(decode(_Replay(model, max_tokens, tape)))
        except _EndOfTape as end:
            tapes += [[*tape, *blocks] for blocks in product(*end.choices)]
        else:
            log_p = (p for block in tape for p in model.log_p_of(block))
            responses[response] += math.exp(math.fsum(log_p))
    return dict(responses)


class _EndOfTape(Exception):
    """The decoder draws more than the tape holds.

    Args:
        choices: the blocks that each draw could give.
    """

    def __init__(self, choices: list[list[Tokens]]) -> None:
        super().__init__()
        self.choices = choices


class _Replay(TinyProposal):
    """A proposal whose draws are given beforehand, in order."""

    def __init__(self, model: TinyModel, max_tokens: int, tape: Sequence[Tokens]) -> None:
        super().__init__(model, max_tokens)
        self._tape = list(tape)

    def _draw(self, lengths: Sequence[int]) -> Sequence[Tokens]:
        if lengths and not self._tape:
            raise _EndOfTape([self._blocks(length) for length in lengths])
        blocks, self._tape = self._tape[: len(lengths)], self._tape[len(lengths) :]
        return blocks

    def _blocks(self, length: int) -> list[Tokens]:
        """All blocks of at most ``length`` tokens that end only at their last token."""
        *going, end = self._model.tokens
        blocks: list[Tokens] = [
            (*front, end) for n in range(length) for front in product(going, repeat=n)
        ]
        return [*blocks, *product(going, repeat=length)]


def _tokens(prefix: Prefix) -> Tokens:
    return tuple(token for candidate in prefix for token in candidate.token_ids)


def _response(decisions: AsyncGenerator[Decision, None]) -> Tokens:
    """The response of a decoder whose proposal never waits, without an event loop."""
    collecting = _collect(decisions)
    try:
        collecting.send(None)
    except StopIteration as done:
        response: Tokens = done.value
        return response
    collecting.close()
    raise TypeError("the decoder waits for something other than its proposal")


async def _collect(decisions: AsyncGenerator[Decision, None]) -> Tokens:
    return tuple([token async for one in decisions for token in one.candidate.token_ids])
