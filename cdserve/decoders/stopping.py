"""Best-of-n with candidates that begin one after another, until another is not worth its tokens.

Optimal stopping as in Pandora's box (arXiv 2510.01394), with a distribution of the scores that is
estimated per prompt (as in AdaBoN, arXiv 2505.12050).
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Hashable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Protocol

from cdserve import kl
from cdserve.decoders.candidate import (
    Candidate,
    Decision,
    DrawCounts,
    Proposal,
    Score,
    comparable_scores,
    final,
    key,
)
from cdserve.decoders.selection import SelectionRule
from cdserve.policy import StopAtThreshold, StopByGain

_MEAN_WEIGHT = 1
"""Weight of the prior mean, in scores."""
_FREEDOM = 4
"""Degrees of freedom of the prior variance."""
_MIN_SCORES = 5
"""Scores that an estimate without a prior requires."""


class StopRule(Protocol):
    """Decides when enough candidates have been drawn."""

    def should_stop(
        self, scores: Sequence[float], tokens: Sequence[int], answers: Sequence[str | None] = ()
    ) -> bool:
        """Whether to stop after the candidates with these scores and lengths, in order drawn.

        Args:
            scores: scores of the candidates; at least one.
            tokens: their lengths in tokens.
            answers: their answers in a vote; None for a candidate without an answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """Stops at the first score that reaches ``threshold``."""

    threshold: float

    def should_stop(
        self, scores: Sequence[float], tokens: Sequence[int], answers: Sequence[str | None] = ()
    ) -> bool:
        return max(scores) >= self.threshold


@dataclass(frozen=True, slots=True)
class ByGain:
    """Stops once the expected gain of another candidate is below its expected price.

    Args:
        gain_per_token: λ, price of a token in units of the score.
        variance: prior variance of the score; None without a prior.
    """

    gain_per_token: float
    variance: float | None = None

    def should_stop(
        self, scores: Sequence[float], tokens: Sequence[int], answers: Sequence[str | None] = ()
    ) -> bool:
        return expected_gain(scores, self.variance) < self.gain_per_token * fmean(tokens)


def stop_rule(stop: StopByGain | StopAtThreshold, variance: float | None) -> StopRule:
    """Stop rule of a policy; ``variance`` is the prior variance of the score, None without one."""
    if isinstance(stop, StopAtThreshold):
        return AtThreshold(stop.threshold)
    return ByGain(stop.gain_per_token, variance)


def expected_gain(scores: Sequence[float], variance: float | None = None) -> float:
    """E[(r - best)⁺] of the next score r, in units of the score.

    r is normal with unknown mean and variance, so that its predictive distribution is Student's t.
    With a prior variance the prior is normal-inverse-χ²: mean 0 with the weight of one score, and
    the variance with four degrees of freedom. Without it the prior is flat, and since a few scores
    alone often understate the spread, five are required.

    Args:
        scores: scores so far; at least one.
        variance: prior variance; None without a prior.

    Returns:
        The expected gain; ∞ without a prior if there are too few scores or all are equal.
    """
    size = max(1.0, *map(abs, scores))  # sums of squares of large scores would overflow
    scores = [score / size for score in scores]
    count, mean = len(scores), fmean(scores)
    squares = math.fsum((score - mean) * (score - mean) for score in scores)
    if variance is None:
        if count < _MIN_SCORES or max(scores) == min(scores):
            return math.inf
        centre, weight, freedom = mean, count, count - 1
    else:
        weight, freedom = count + _MEAN_WEIGHT, count + _FREEDOM
        centre = count * mean / weight
        squares += _FREEDOM * (variance / size / size) + _MEAN_WEIGHT * mean * centre
    if squares == 0.0:  # smaller than a float
        return math.inf
    scale = math.sqrt(squares / freedom * (1.0 + 1.0 / weight))
    return size * scale * t_excess((max(scores) - centre) / scale, freedom)


def t_excess(z: float, freedom: int) -> float:
    """E[(T - z)⁺] of Student's t: f(z) (ν + z²) / (ν - 1) - z P(T > z).

    Args:
        z: level.
        freedom: ν, degrees of freedom; at least 2.
    """
    log_density = (
        math.lgamma((freedom + 1) / 2)
        - math.lgamma(freedom / 2)
        - 0.5 * math.log(freedom * math.pi)
        - (freedom + 1) / 2 * math.log1p(z * z / freedom)
    )
    excess = math.exp(log_density) * (freedom + z * z) / (freedom - 1) - z * _t_tail(z, freedom)
    return max(0.0, excess)


def _t_tail(z: float, freedom: int) -> float:
    """P(T > z) of Student's t (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(z / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    within = 2.0 / math.pi * (angle + sine * total) if odd else sine * total
    return (1.0 - within) / 2.0


async def best_of(
    proposal: Proposal,
    *,
    n: int,
    at_once: int,
    select: SelectionRule,
    stop: StopRule | None = None,
    budget: float | None = None,
) -> AsyncGenerator[Decision, None]:
    """Decodes one response: one decision between up to ``n`` whole responses.

    The stop rule sees the candidates in the order in which they were begun, whichever ends first.
    So the response depends on the candidates alone, and not on what runs at the same time. The
    candidates after the one at which the rule stops are abandoned.

    The rule does not see a candidate with a failed reward, whose score is not comparable, or one
    that the deadline cut short. Once the deadline has passed, the rule no longer stops: the best of
    all candidates drawn is selected.

    Args:
        proposal: draws and scores candidates.
        n: most candidates.
        at_once: candidates that are drawn or scored at the same time; with a stop rule, also those
            that wait to be considered.
        select: the selection rule.
        stop: the stop rule; None to draw all candidates.
        budget: upper limit, in nats, on the KL bound plus the KL of steering; it may allow fewer
            candidates.
    """
    allowed, steering = n, None
    if budget is not None:
        allowed = kl.largest_n(budget, n)
        steering = max(0.0, budget - kl.best_of_n_bound(allowed))
    draws = _Draws(proposal, allowed, at_once, stop, steering)
    await draws.run()
    await draws.make_comparable()
    ranks = _ranks(select, draws.candidates, draws.scores)
    kept = select.keep(ranks, [(candidate,) for candidate in draws.candidates])
    assert kept is not None
    chosen = kept[0]
    decision = Decision(
        candidates=draws.candidates,
        scores=draws.scores,
        chosen=chosen,
        tie=ranks.count(max(ranks)) > 1,
        kl_bound=select.kl_bound(allowed),
        kl_estimate=select.kl_bound(allowed),
        kl_estimator="bound",
        limited=allowed < n,
        draws=draws.count(),
        unused=draws.unused,
    )
    if stop is None and len(draws.candidates) == allowed:
        logprob = decision.candidate.cumulative_logprob
        decision = replace(
            decision,
            kl_estimate=select.kl_estimate(ranks, logprob),
            kl_estimator=select.kl_estimator(logprob),
        )
    yield decision


@dataclass(slots=True)
class _Draws:
    """Candidates of one response, drawn until the rule stops."""

    proposal: Proposal
    allowed: int
    at_once: int
    stop: StopRule | None
    steering: float | None
    candidates: list[Candidate] = field(default_factory=list)
    """Candidates considered so far, in the order in which they were begun."""
    scores: list[Score] = field(default_factory=list)
    """Scores of ``candidates``."""
    stopped: bool = False
    """Whether the rule has stopped the draws."""
    _drawn: dict[int, Candidate] = field(default_factory=dict)
    _scored: dict[int, Score] = field(default_factory=dict)
    _score_by_key: dict[Hashable, Score] = field(default_factory=dict)

    @property
    def unused(self) -> list[Candidate]:
        """Candidates that had begun when the rule stopped, and that were not considered."""
        return [self._drawn[i] for i in sorted(self._drawn) if i >= len(self.candidates)]

    def count(self) -> DrawCounts:
        """Candidates begun, and the tokens saved by the mean length of those considered."""
        considered = len(self.candidates)
        # The deadline, not the rule, ends draws that are incomplete without a stop: no savings.
        allowed = self.allowed if self.stopped else considered
        length = fmean(len(candidate.token_ids) for candidate in self.candidates)
        unused = sum(len(candidate.token_ids) for candidate in self.unused)
        saved = max(0, round((allowed - considered) * length - unused))
        return DrawCounts(made=considered + len(self.unused), allowed=allowed, saved_tokens=saved)

    async def run(self) -> None:
        """Draws candidates until the rule stops; if one fails or this is cancelled, all end."""
        try:
            async with asyncio.TaskGroup() as group:
                await self._draw_all(group)
        except* Exception as failures:
            raise failures.exceptions[0] from None

    async def _draw_all(self, group: asyncio.TaskGroup) -> None:
        running: dict[asyncio.Task[None], int] = {}
        begun = 0
        while not self.stopped:
            while begun < self.allowed and self._room(begun, len(running)):
                if begun and self.proposal.deadline_passed:
                    break
                running[group.create_task(self._draw(begun))] = begun
                begun += 1
            if not running:
                return
            ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                del running[task]
            self._consider()
        for task, index in running.items():
            if index in self._drawn:
                task.cancel()  # its score is not needed
        await self.proposal.abandon()

    def _room(self, begun: int, running: int) -> bool:
        """Whether another candidate may begin.

        With a stop rule, candidates that have ended count until the rule has seen them: fewer than
        ``at_once`` are then drawn in vain.
        """
        under_way = running if self.stop is None else begun - len(self.candidates)
        return under_way < self.at_once

    async def _draw(self, index: int) -> None:
        self._drawn[index] = await self.proposal.draw(index, self.steering)
        if not self.stopped:
            candidate = self._drawn[index] = final(self._drawn[index])
            (self._scored[index],) = await self.proposal.score([(candidate,)])

    def _consider(self) -> None:
        """Considers scored candidates in order, until the rule stops.

        Equal candidates share the first one's score: computed again, it could differ in a last
        digit.
        """
        while not self.stopped and (index := len(self.candidates)) in self._scored:
            candidate, score = self._drawn[index], self._scored[index]
            if not score.failed:
                score = self._score_by_key.setdefault(key((candidate,)), score)
            self.candidates.append(candidate)
            self.scores.append(score)
            self.stopped = self._should_stop()

    def _should_stop(self) -> bool:
        """Whether the rule stops after the finished candidates whose rewards have not failed."""
        if self.stop is None or self.proposal.deadline_passed:
            return False
        considered = zip(self.candidates, self.scores, strict=True)
        finished = [(c, score) for c, score in considered if not (c.cut or score.failed)]
        return bool(finished) and self.stop.should_stop(
            [score.total for _, score in finished],
            [len(c.token_ids) for c, _ in finished],
            [c.answer for c, _ in finished],
        )

    async def make_comparable(self) -> None:
        """Scores all candidates again, in one call, if some rewards failed for some of them only.

        A reward then has a value for all of them or fails for all, as in any other decision.
        """
        if len({score.failed for score in self.scores}) > 1:
            prefixes = [(candidate,) for candidate in self.candidates]
            self.scores = await comparable_scores(self.proposal, prefixes)


def _ranks(
    select: SelectionRule, candidates: Sequence[Candidate], scores: Sequence[Score]
) -> list[float]:
    """Ranks of the candidates; those that the deadline cut short come last."""
    ranks = list(select.rank(scores))
    if all(candidate.cut for candidate in candidates):
        return ranks
    return [-math.inf if c.cut else rank for c, rank in zip(candidates, ranks, strict=True)]
