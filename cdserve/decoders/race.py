"""Race: responses grow in rounds, and those that are unlikely to end as the best are given up.

Speculative rejection (arXiv 2410.20290) with a calibrated share, and with a stop rule the search of
Pandora's box (Weitzman, 1979) with boxes that open in steps.
"""

import math
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from cdserve import kl
from cdserve.decoders.candidate import (
    Candidate,
    Decision,
    DrawCounts,
    Outlook,
    Prefix,
    Proposal,
    Score,
    comparable_scores,
    final,
)
from cdserve.policy import Stop, StopAtThreshold, StopByGain

Floats = NDArray[np.float64]

_REACH, _STEPS = 8.0, 801
"""Half the width of the tables, in standard deviations, and their size."""
_NORMAL = np.linspace(-_REACH, _REACH, _STEPS)
_LOG_BELOW = np.log([0.5 * math.erfc(-x / math.sqrt(2.0)) for x in _NORMAL])
"""log Φ of the numbers of ``_NORMAL``."""
_LEAST = 1e-6
"""Least deviation of an unfinished response, in units of the score: 0 is that of a final score."""


async def race(
    proposal: Proposal,
    *,
    n: int,
    at_once: int,
    every: int,
    delta: float,
    stop: Stop | None = None,
) -> AsyncGenerator[Decision, None]:
    """Decodes one response: the best of up to ``n`` that grow in rounds, by the plans of ``Race``.

    A response that does not grow in a round takes no place in the engine. The rounds are
    synchronised, so the answer depends on the candidates alone. A decision is yielded per block,
    from the time when a single response is left. It lists the candidates drawn up to its round that
    no earlier decision lists.

    Once the deadline has passed, the best response that has ended and has not been given up is
    selected. If there is none, it is one that the deadline cut short.

    Args:
        proposal: draws and scores candidates.
        n: most responses.
        at_once: responses that grow in the same round, at most; fewer on a full server.
        every: tokens per round.
        delta: δ, from 0 to 1.
        stop: the stop rule; None for none.
    """
    places = min(n, proposal.places(at_once))
    prior = (await proposal.score([()]))[0].total if places < n else 0.0
    rule = Race(delta, stop, proposal.outlook, prior)
    record = _Record(n)
    runners: list[Runner] = []
    plan = Plan((), 1 if proposal.deadline_passed else places, n > places)
    try:
        while plan.grow or plan.begin:
            started = [Runner() for _ in range(plan.begin)]
            runners += started
            growing = [*plan.grow, *started]
            blocks = await proposal.grow([runner.blocks for runner in growing], every)
            late = proposal.deadline_passed
            for runner, block in zip(growing, blocks, strict=True):
                runner.blocks += (final(block) if late else block,)
            rivals = [runner for runner in runners if not runner.given_up]
            scores = await comparable_scores(proposal, [runner.blocks for runner in rivals])
            for runner, score in zip(rivals, scores, strict=True):
                runner.score = score
            record.add(growing)
            if late:
                break
            unbegun = n - len(runners) if plan.more else 0
            plan = rule.plan(runners, unbegun, proposal.places(at_once))
            left = [runner for runner in runners if not runner.given_up]
            if len(left) == 1 and plan == Plan(left, 0, False):
                for decision in record.decisions(left[0]):
                    yield decision
    finally:
        await proposal.abandon()
    ended = [runner for runner in runners if runner.ended and not runner.given_up]
    best = max(ended, key=lambda runner: (not runner.blocks[-1].cut, runner.score.total))
    *others, last = record.decisions(best)
    for decision in others:
        yield decision
    yield replace(last, draws=record.draws(runners, proposal.deadline_passed))


@dataclass(slots=True, eq=False)
class Runner:
    """A response that has begun."""

    blocks: Prefix = ()
    score: Score = field(default_factory=lambda: Score(0.0, {}))
    """Score of ``blocks``; the last one before it was given up."""
    given_up: bool = False

    @property
    def ended(self) -> bool:
        return self.blocks[-1].finish_reason is not None

    @property
    def tokens(self) -> int:
        return sum(len(block.token_ids) for block in self.blocks)


@dataclass(frozen=True, slots=True)
class Plan:
    """The next round."""

    grow: Sequence[Runner]
    """Responses that grow by a block."""
    begin: int
    """Responses that begin."""
    more: bool
    """Whether responses may begin in later rounds."""


@dataclass(frozen=True, slots=True)
class Race:
    """Plans each round by the probability that each response ends as the best.

    The final score of an unfinished response is taken as normal around its present score. A
    response that has not begun counts as one of no tokens, around the mean of the prompt's value
    and the scores of all responses begun. Unfinished responses with a probability below δ are given
    up; if one response has more than 1 - δ, all others are. Those with the highest probability per
    token still to come grow, as many as there are places. The others wait.

    With ``gain_per_token`` λ, a response grows only if its expected gain over the best final score
    of ended responses, and of responses taken before it, is at least λ times its tokens to come.
    With ``threshold``, the race ends at a final score that reaches it.

    Args:
        delta: δ.
        stop: the stop rule, or None.
        outlook: maps the length of an unfinished response, in tokens, to its outlook.
        prior: value of the prompt, in units of the score.
    """

    delta: float
    stop: Stop | None
    outlook: Callable[[int], Outlook]
    prior: float = 0.0

    def plan(self, runners: Sequence[Runner], unbegun: int, places: int) -> Plan:
        """Gives up responses, and plans the next round; it is empty once the race has ended.

        Args:
            runners: the responses begun.
            unbegun: responses that may still begin.
            places: responses that grow in the same round, at most.
        """
        rivals = [runner for runner in runners if not runner.given_up]
        comparable = not any(runner.score.failed for runner in rivals)
        best = max((runner.score.total for runner in rivals if runner.ended), default=-math.inf)
        if comparable and isinstance(self.stop, StopAtThreshold) and best >= self.stop.threshold:
            return Plan((), 0, False)
        mean = fmean([self.prior, *(runner.score.total for runner in runners)])
        outlooks = [
            *(None if runner.ended else self.outlook(runner.tokens) for runner in rivals),
            *[self.outlook(1)] * unbegun,
        ]
        finals = Finals(
            [*(runner.score.total for runner in rivals), *[mean] * unbegun],
            [0.0 if rest is None else max(rest.deviation, _LEAST) for rest in outlooks],
        )
        chances = finals.win_chances()
        favourite = max(range(len(chances)), key=chances.__getitem__)
        if chances[favourite] > 1.0 - self.delta:
            kept = [favourite]
        else:  # an ended response costs nothing
            kept = [i for i, p in enumerate(chances) if p >= self.delta or outlooks[i] is None]
        tokens = {i: max(1.0, rest.tokens) for i, rest in enumerate(outlooks) if rest and i in kept}
        order = sorted(tokens, key=lambda i: chances[i] / tokens[i], reverse=True)
        if comparable and isinstance(self.stop, StopByGain):
            price = self.stop.gain_per_token
            order = finals.worthwhile(order, {i: price * tokens[i] for i in order})
        taken = order[:places]
        if not taken:
            return Plan((), 0, False)
        for i, runner in enumerate(rivals):
            runner.given_up = i not in kept
        grow = [rivals[i] for i in taken if i < len(rivals)]
        begin = len(taken) - len(grow)
        return Plan(grow, begin, unbegun > begin and kept[-1] >= len(rivals))


class Finals:
    """Final scores of responses, taken as independent and normal.

    Args:
        means: present scores.
        deviations: standard deviations of the final scores; 0 for a present score that is final.
    """

    def __init__(self, means: Sequence[float], deviations: Sequence[float]) -> None:
        self._means, spreads = np.array(means), np.array(deviations)
        self._open = spreads > 0.0
        self._best = float(np.where(self._open, -np.inf, self._means).max())
        top, widest = float(self._means.max()), float(spreads.max())
        low = max(self._best, top - _REACH * widest)
        high = max(low + widest, float((self._means + _REACH * spreads).max()))
        self._x = np.linspace(low, high, _STEPS)
        # Narrower densities would fall between the steps.
        self._spreads = np.maximum(spreads, 2.0 * (high - low) / _STEPS)[self._open]
        self._log_below = self._log_cdf(self._x[:, None])

    def win_chances(self) -> list[float]:
        """Probability that each response has the highest final score.

        ∫ φ(x - z_i) Π_j Φ(x - z_j) dx, with j over the other unfinished responses, x above the
        highest final score so far, and each score in its own standard deviations. Of equal final
        scores the first wins.
        """
        chances = np.zeros(len(self._means))
        if self._open.any():
            z = (self._x[:, None] - self._means[self._open]) / self._spreads
            others = self._log_below.sum(1, keepdims=True) - self._log_below
            density = np.exp(others - z * z / 2.0) / self._spreads
            chances[self._open] = np.trapezoid(density, self._x, axis=0) / math.sqrt(2 * math.pi)
        if not self._open.all():
            best = int(np.where(self._open, -np.inf, self._means).argmax())
            chances[best] = math.exp(float(self._log_cdf(np.array(self._best)).sum()))
        normalised: list[float] = (chances / chances.sum()).tolist()
        return normalised

    def worthwhile(self, order: Sequence[int], prices: Mapping[int, float]) -> list[int]:
        """The unfinished responses of ``order`` whose expected gain is at least their price.

        The gain is E[(R_i - M)⁺] = ∫ P(R_i > x) P(M <= x) dx, where M is the highest final score so
        far and of the responses taken before. The first one is taken at any price if there is no M.
        """
        column = {int(i): k for k, i in enumerate(np.flatnonzero(self._open))}
        below = np.exp(self._log_below)
        highest = np.ones(_STEPS)  # P(M <= x)
        taken: list[int] = []
        for i in order:
            gain = float(np.trapezoid((1.0 - below[:, column[i]]) * highest, self._x))
            if gain >= prices[i] or (self._best == -math.inf and not taken):
                taken.append(i)
                highest = highest * below[:, column[i]]
        return taken

    def _log_cdf(self, x: Floats) -> Floats:
        """log P(R_i <= x) of each unfinished response, with x clamped to ±``_REACH`` deviations."""
        z = (x - self._means[self._open]) / self._spreads
        log_below: Floats = np.interp(z, _NORMAL, _LOG_BELOW)
        return log_below


@dataclass(slots=True)
class _Record:
    """Candidates drawn, and the decisions that list them.

    Args:
        n: most responses.
    """

    n: int
    rounds: list[list[tuple[Candidate, Score]]] = field(default_factory=list)
    """Candidates of each round that no decision lists yet, with their scores."""
    decided: int = 0
    """Decisions made."""
    tokens: int = 0
    """Tokens of all candidates drawn."""

    def add(self, grown: Sequence[Runner]) -> None:
        """Adds a round: the last block of each response that grew."""
        self.rounds.append([(runner.blocks[-1], runner.score) for runner in grown])
        self.tokens += sum(len(runner.blocks[-1].token_ids) for runner in grown)

    def decisions(self, runner: Runner) -> Iterator[Decision]:
        """Decisions for the blocks of a response that have none; the last block lists the rest."""
        for block in runner.blocks[self.decided :]:
            listed: list[tuple[Candidate, Score]] = []
            while self.rounds and (block.finish_reason or all(c is not block for c, _ in listed)):
                listed += self.rounds.pop(0)
            totals = [score.total for _, score in listed]
            bound = kl.best_of_n_bound(1 if self.decided else self.n)
            self.decided += 1
            yield Decision(
                candidates=[candidate for candidate, _ in listed],
                scores=[score for _, score in listed],
                chosen=next(i for i, (candidate, _) in enumerate(listed) if candidate is block),
                tie=totals.count(max(totals)) > 1,
                kl_bound=bound,
                kl_estimate=bound,
                kl_estimator="bound",
            )

    def draws(self, runners: Sequence[Runner], late: bool) -> DrawCounts:
        """Responses begun, and the tokens saved by the mean length of ended responses."""
        allowed = len(runners) if late else self.n
        length = fmean(runner.tokens for runner in runners if runner.ended)
        saved = max(0, round(allowed * length) - self.tokens)
        return DrawCounts(made=len(runners), allowed=allowed, saved_tokens=saved)
