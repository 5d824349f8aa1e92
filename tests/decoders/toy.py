"""The tabular language model "ab3": the distribution of any search over it can be enumerated.

Tokens a, b and E (end) with p = (.5, .3, .2) at every step. After three tokens without E the end is
forced: it is no choice, so it adds no token to the block that reaches length three. r = #b.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, TypeVar

from cdserve.decoders import Argmax, Candidate, Decision, Prefix, Score, search
from cdserve.decoders.until import first_end, step_text

A, B, E = 0, 1, 2
P = (0.5, 0.3, 0.2)
LENGTH = 3

Tokens = tuple[int, ...]
T = TypeVar("T")
Draws = Sequence[Tokens]
Draw = Callable[[Tokens, int, int | None], Draws]


def reward(tokens: Tokens) -> float:
    """r of a response."""
    return float(tokens.count(B))


def ended(tokens: Tokens) -> bool:
    """Whether a prefix is a whole response."""
    return len(tokens) == LENGTH or tokens[-1:] == (E,)


@cache
def value(tokens: Tokens) -> float:
    """V*(s) = E_p[r | s] = #b(s) + W_{3-|s|}, with W_j = .3 + .8 W_{j-1}."""
    to_come = 0.0
    for _ in range(0 if ended(tokens) else LENGTH - len(tokens)):
        to_come = P[B] + (P[A] + P[B]) * to_come
    return reward(tokens) + to_come


@cache
def soft_value(tokens: Tokens) -> float:
    """V_soft(s) = log E_p[e^r | s], at beta = 1."""
    if ended(tokens):
        return reward(tokens)
    return math.log(sum(p * math.exp(soft_value((*tokens, z))) for z, p in enumerate(P)))


@cache
def probability(tokens: Tokens) -> float:
    """p(tokens), given whatever went before."""
    return math.prod(P[token] for token in tokens)


@cache
def blocks(prefix: Tokens, m: int | None) -> tuple[Tokens, ...]:
    """Every block of at most ``m`` tokens that can follow ``prefix``."""
    if ended(prefix) or m == 0:
        return ((),)
    left = None if m is None else m - 1
    return tuple((t, *rest) for t in range(len(P)) for rest in blocks((*prefix, t), left))


RESPONSES = blocks((), None)

# Chi-square at 1 - 0.001, by degrees of freedom from 1.
CRITICAL = [
    10.83,
    13.82,
    16.27,
    18.47,
    20.52,
    22.46,
    24.32,
    26.12,
    27.88,
    29.59,
    31.26,
    32.91,
    34.53,
    36.12,
]


class Toy:
    """A Proposal over ab3, scored by V*.

    Args:
        draw: gives the blocks that follow a prefix: ``(prefix, count, m) -> blocks``.
        start: tokens before those that the search makes.
        until: strings over "ab" and tokens that end a block.
    """

    def __init__(
        self, draw: Draw, start: Tokens = (), until: Sequence[str | int] | None = None
    ) -> None:
        self._draw = draw
        self._start = start
        self._until = until
        self.deadline_passed = False

    async def sample(
        self,
        prefixes: Sequence[Prefix],
        count: int,
        max_tokens: int | None,
        budget: float | None = None,
    ) -> Sequence[Candidate]:
        return [
            self._candidate(prefix, block, max_tokens)
            for prefix in prefixes
            for block in self._draw(self.tokens(prefix), count, max_tokens)
        ]

    def _candidate(self, prefix: Prefix, block: Tokens, m: int | None) -> Candidate:
        end, text = None, "".join("abE"[token] for token in block)
        if self._until is not None and m is not None:
            strings = [one for one in self._until if isinstance(one, str)]
            tokens = [one for one in self._until if isinstance(one, int)]
            end = first_end(step_text(prefix), block, text, strings, tokens)
        block = block if end is None else block[: end[0]]
        return Candidate(
            token_ids=block,
            finish_reason="stop" if ended(self.tokens(prefix) + block) else None,
            text=text[: len(block)],
            until=None if end is None else end[1],
            cumulative_logprob=math.log(probability(block)),
        )

    async def roll_out(self, prefixes: Sequence[Prefix], max_tokens: int) -> Sequence[Candidate]:
        """The most likely token is a."""
        written = [len(self.tokens(prefix)) for prefix in prefixes]
        rollouts = [(A,) * min(max_tokens, LENGTH - length) for length in written]
        return [
            Candidate(
                token_ids=rollout, finish_reason="stop" if length + len(rollout) == LENGTH else None
            )
            for length, rollout in zip(written, rollouts, strict=True)
        ]

    async def score(self, prefixes: Sequence[Prefix]) -> Sequence[Score]:
        totals = [value(self.tokens(prefix)) for prefix in prefixes]
        return [Score(total, {"b": total}) for total in totals]

    @property
    def score_variance(self) -> float | None:
        """No statistics of the reward."""
        return None

    def places(self, most: int) -> int:
        """All of them."""
        return most

    async def grow(self, prefixes: Sequence[Prefix], max_tokens: int) -> Sequence[Candidate]:
        """A block of each prefix."""
        return await self.sample(prefixes, 1, max_tokens)

    async def draw(self, index: int, budget: float | None = None) -> Candidate:
        """A whole response."""
        (candidate,) = await self.sample([()], 1, None, budget)
        return candidate

    async def abandon(self) -> None:
        """Does nothing: no candidate takes time."""

    def tokens(self, prefix: Prefix) -> Tokens:
        """All of a prefix's tokens."""
        return self._start + tuple(token for one in prefix for token in one.token_ids)


class Limits:
    """An operator's limits."""

    max_n = 16
    max_k = 8
    max_candidate_tokens = 8192
    max_comparisons = 128
    allow_negative_weights = False


class At(random.Random):
    """A source that draws one number, given beforehand."""

    def __init__(self, u: float) -> None:
        super().__init__(0)
        self._u = u

    def random(self) -> float:
        return self._u


def sampler(seed: int) -> Draw:
    """Draws blocks from p."""
    rng = random.Random(seed)

    def draw(prefix: Tokens, count: int, m: int | None) -> Draws:
        choices = blocks(prefix, m)
        return rng.choices(choices, [probability(block) for block in choices], k=count)

    return draw


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of what never waits; without an event loop, so that many thousands are quick."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")


async def collect(decisions: AsyncIterator[Decision]) -> list[Decision]:
    """All decisions of a response."""
    return [decision async for decision in decisions]


def text(decisions: Sequence[Decision]) -> Tokens:
    """The response they make."""
    return tuple(token for decision in decisions for token in decision.candidate.token_ids)


async def first(prefix: Tokens, draws: Draws, m: int | None) -> Decision:
    """The decision that the search makes between ``draws`` at ``prefix``."""
    proposal = Toy(lambda *_: draws, prefix)
    async with aclosing(search(proposal, k=len(draws), m=m, select=Argmax())) as decisions:
        return await anext(decisions)


@dataclass(frozen=True)
class Distribution:
    """Distribution of a search's response, and means over it."""

    responses: dict[Tokens, float]
    decisions: float = 1.0
    kl_bound: float = 0.0
    kl_estimate: float = 0.0

    @property
    def reward(self) -> float:
        return sum(p * reward(y) for y, p in self.responses.items())

    @property
    def kl(self) -> float:
        """KL from p, in nats."""
        return sum(p * math.log(p / probability(y)) for y, p in self.responses.items() if p > 0)

    @property
    def win_rate(self) -> float:
        """Against a response of p; a tie is half a win."""
        pairs = product(self.responses.items(), RESPONSES)
        return sum(p * probability(z) * _win(reward(y), reward(z)) for (y, p), z in pairs)


def _win(ours: float, theirs: float) -> float:
    return 0.5 if ours == theirs else float(ours > theirs)


@cache
def blockwise(k: int, m: int | None) -> Distribution:
    """Distribution of blockwise search by V*, from all draws of k blocks at every prefix."""
    responses: defaultdict[Tokens, float] = defaultdict(float)
    going: defaultdict[Tokens, float] = defaultdict(float, {(): 1.0})
    decisions = bound = estimate = 0.0
    while going:
        prefix, reached = going.popitem()
        for p, decision in _outcomes(prefix, k, m):
            mass = reached * p
            decisions += mass
            bound += mass * decision.kl_bound
            estimate += mass * decision.kl_estimate
            whole = prefix + decision.candidate.token_ids
            (responses if ended(whole) else going)[whole] += mass
    return Distribution(dict(responses), decisions, bound, estimate)


def _outcomes(prefix: Tokens, k: int, m: int | None) -> Iterator[tuple[float, Decision]]:
    for draws in product(blocks(prefix, m), repeat=k):
        yield math.prod(map(probability, draws)), finish(first(prefix, draws, m))


def replay(
    run: Callable[[Toy], AsyncIterator[Decision]], toy: Callable[[Draw], Toy] = Toy
) -> Distribution:
    """Distribution of a whole search, run once for every outcome of its draws."""
    responses: defaultdict[Tokens, float] = defaultdict(float)
    decisions = bound = estimate = 0.0
    tapes: list[list[Draws]] = [[]]
    while tapes:
        tape = tapes.pop()
        try:
            made = finish(collect(run(toy(_player(tape)))))
        except EndOfTape as ended:
            tapes += [[*tape, draws] for draws in product(*ended.choices)]
            continue
        p = math.prod(probability(block) for draws in tape for block in draws)
        responses[text(made)] += p
        decisions += p * len(made)
        bound += p * sum(decision.kl_bound for decision in made)
        estimate += p * sum(decision.kl_estimate for decision in made)
    return Distribution(dict(responses), decisions, bound, estimate)


class EndOfTape(Exception):
    """The search asks for a draw that the tape does not hold yet."""

    def __init__(self, choices: Sequence[Draws]) -> None:
        super().__init__()
        self.choices = choices


def _player(tape: list[Draws]) -> Draw:
    left = iter(tape)

    def draw(prefix: Tokens, count: int, m: int | None) -> Draws:
        for draws in left:
            return draws
        raise EndOfTape([blocks(prefix, m)] * count)

    return draw


def assert_follows(
    served: Iterable[AsyncIterator[Decision]], expected: dict[Tokens, float]
) -> None:
    """Chi-square of the responses served; rare ones are counted as one."""
    counts = Counter(text(finish(collect(decisions))) for decisions in served)
    assert counts.keys() <= expected.keys()
    total = counts.total()
    cells = [(counts[y], total * p) for y, p in expected.items()]
    common = [cell for cell in cells if cell[1] >= 5]
    rare = [cell for cell in cells if cell[1] < 5]
    if rare:
        common.append((sum(seen for seen, _ in rare), sum(mean for _, mean in rare)))
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in common)
    assert statistic < CRITICAL[len(common) - 2]
