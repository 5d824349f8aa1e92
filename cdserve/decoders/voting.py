"""Selection between whole responses by agreement: votes over answers, and minimum Bayes risk.

Majority vote is self-consistency (arXiv 2203.11171); minimum Bayes risk is risk-regularised by the
reward (arXiv 2502.12668). Which response is selected depends on all the draws, so the KL is known
by its bound only.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cdserve.decoders.candidate import AnswerClass, Prefix, Score, Votes
from cdserve.decoders.selection import OrderDependentRule
from cdserve.errors import ScoringError
from cdserve.policy import FIELD, SoftmaxWeights

Weights = Literal["count", "reward", "posterior"] | SoftmaxWeights
_LEAST = 1e-6
"""Distance of a confidence from 0 and 1, at least."""


class Election(OrderDependentRule):
    """Base of rules that compare whole responses with each other.

    Attributes:
        tie: whether two responses or answers were equally good in the last decision.
        votes: outcome of the last vote; None if nothing was voted on.
    """

    def __init__(self) -> None:
        self.tie = False
        self.votes: Votes | None = None


class VoteRule(Election):
    """Selects the response with the highest score among those with the winning answer.

    The winner has the highest weight; of equal weights, the answer begun first. Responses without
    an answer, and those that the deadline cut short, do not vote. If no response votes, the
    highest score is selected.

    Args:
        weights: weight of a vote, as in ``policy.Vote``.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self._weights = weights
        self._failed = False

    def rank(self, scores: Sequence[Score]) -> Sequence[float]:
        self._failed = any(score.failed for score in scores)
        return super().rank(scores)

    def keep(self, scores: Sequence[float], prefixes: Sequence[Prefix]) -> Sequence[int]:
        """Index of the selected response.

        Raises:
            ScoringError: a score is negative with the weights ``reward``, or not from 0 to 1 with
                ``posterior``.
        """
        members: dict[str, list[int]] = {}
        for i, (*_, candidate) in enumerate(prefixes):
            if candidate.answer is not None and not candidate.cut:
                members.setdefault(candidate.answer, []).append(i)
        voters = [i for indices in members.values() for i in indices]
        if self._weights == "posterior" and not self._failed:
            class_weights = posterior([[scores[i] for i in each] for each in members.values()])
        else:
            weights = dict(zip(voters, self._of([scores[i] for i in voters]), strict=True))
            class_weights = [math.fsum(weights[i] for i in each) for each in members.values()]
        classes = [
            AnswerClass(answer, len(indices), weight)
            for (answer, indices), weight in zip(members.items(), class_weights, strict=True)
        ]
        classes.sort(key=lambda each: -each.weight)  # stable: of equal weights the first begun
        self.votes = Votes(classes, len(scores) - len(voters))
        best = [each.weight for each in classes] or list(scores)
        self.tie = best.count(max(best)) > 1
        choice = members[classes[0].answer] if classes else range(len(scores))
        return [max(choice, key=scores.__getitem__)]

    def _of(self, scores: Sequence[float]) -> Sequence[float]:
        """Weights of the votes of responses with these scores."""
        if self._weights == "reward":
            if min(scores, default=0.0) < 0:
                raise ScoringError(
                    f"a response's score is {min(scores):.9g}; {FIELD}.selection.vote.weights is "
                    "'reward', which needs scores of at least 0; {'softmax': λ} takes any"
                )
            return scores
        if not isinstance(self._weights, SoftmaxWeights):
            return [1.0] * len(scores)
        top = max(scores, default=0.0)
        shares = [math.exp((score - top) / self._weights.softmax) for score in scores]
        return [share / math.fsum(shares) for share in shares]


class MinimumRiskRule(Election):
    """Selects the highest score + β · mean agreement with the other responses.

    Args:
        beta: β, in units of the score.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self._beta = beta

    def keep(self, scores: Sequence[float], prefixes: Sequence[Prefix]) -> Sequence[int]:
        """Index of the selected response; those that the deadline cut short do not count."""
        indices = [i for i, score in enumerate(scores) if score > -math.inf]
        agreement = mean_agreement([prefixes[i][-1].token_ids for i in indices])
        ranks = [scores[i] + self._beta * a for i, a in zip(indices, agreement, strict=True)]
        best = max(ranks)
        self.tie = ranks.count(best) > 1
        return [indices[ranks.index(best)]]


def mean_agreement(texts: Sequence[Sequence[int]]) -> list[float]:
    """Mean token F1 of each text with the others: 2 |A ∩ B| / (|A| + |B|), with multiplicity.

    Two empty texts agree. A single text has no others, and the mean 0.

    Args:
        texts: token ids of each text.
    """
    count = len(texts)
    if count == 1:
        return [0.0]
    lengths = np.array([len(text) for text in texts])
    tokens = np.concatenate([np.sort(np.array(text, np.int64)) for text in texts])
    rows = np.repeat(np.arange(count), lengths)
    # The k-th occurrence of a token in a text is an item of a set; |A ∩ B| counts common items.
    position = np.arange(len(tokens))
    begins = np.append(True, (np.diff(tokens) != 0) | (np.diff(rows) != 0))[: len(tokens)]
    occurrence = position - np.maximum.accumulate(np.where(begins, position, 0))
    items = tokens * (1 + lengths.max()) + occurrence
    _, columns, frequency = np.unique(items, return_inverse=True, return_counts=True)
    shared = frequency[columns] > 1  # other items are in no intersection
    _, columns = np.unique(columns[shared], return_inverse=True)
    has: NDArray[np.float32] = np.zeros((count, 1 + columns.max(initial=0)), np.float32)
    has[rows[shared], columns] = 1.0
    total = lengths[:, None] + lengths
    f1 = np.where(total > 0, 2.0 * (has @ has.T) / np.maximum(total, 1), 1.0)
    np.fill_diagonal(f1, 0.0)
    means: list[float] = (f1.sum(1) / (count - 1)).tolist()
    return means


def posterior(confidences: Sequence[Sequence[float]]) -> list[float]:
    """Probability that each answer is right, by CGES (arXiv 2511.02603).

    Each response is right with its confidence c, independently. If it is wrong, its answer is any
    other one with equal probability. Before the responses, the k answers seen and one not seen are
    equally likely. So an answer's odds against the unseen one are Π k c / (1 - c) over its
    responses.

    Args:
        confidences: confidences of the responses with each answer.

    Raises:
        ScoringError: a confidence is not from 0 to 1.
    """
    for confidence in (c for each in confidences for c in each):
        if not 0.0 <= confidence <= 1.0:
            raise ScoringError(
                f"a response's score is {confidence:.9g}; {FIELD}.selection.vote.weights is "
                "'posterior', which needs probabilities from 0 to 1; {'softmax': λ} takes any score"
            )
    log_odds = [
        math.fsum(_logit(c) + math.log(len(confidences)) for c in each) for each in confidences
    ]
    top = max([0.0, *log_odds])
    shares = [math.exp(odds - top) for odds in log_odds]
    total = math.fsum([math.exp(-top), *shares])
    return [share / total for share in shares]


def _logit(confidence: float) -> float:
    c = min(max(confidence, _LEAST), 1.0 - _LEAST)
    return math.log(c / (1.0 - c))


@dataclass(frozen=True, slots=True)
class CertainPosterior:
    """Stops a vote by posterior once the leading answer is right with probability ``p``."""

    p: float

    def should_stop(
        self, scores: Sequence[float], tokens: Sequence[int], answers: Sequence[str | None] = ()
    ) -> bool:
        confidences: dict[str, list[float]] = {}
        for score, answer in zip(scores, answers, strict=True):
            if answer is not None:
                confidences.setdefault(answer, []).append(score)
        return max(posterior(list(confidences.values())), default=0.0) >= self.p


@dataclass(frozen=True, slots=True)
class Certain:
    """Stops a vote by count once its winner is certain enough (arXiv 2305.11860).

    Args:
        p: probability of the leading answer being more frequent than the next one, of the Beta
            posterior with a flat prior; 1 to stop only once no other answer can win.
        n: most candidates.
    """

    p: float
    n: int

    def should_stop(
        self, scores: Sequence[float], tokens: Sequence[int], answers: Sequence[str | None] = ()
    ) -> bool:
        counts = list(Counter(answer for answer in answers if answer is not None).values())
        if not counts:
            return False
        lead = max(counts)
        leader = counts.index(lead)
        to_come = self.n - len(answers)
        # Of equal counts the answer begun first wins: earlier ones must stay behind the leader.
        earlier, later = counts[:leader], [*counts[leader + 1 :], 0]
        if max(earlier, default=-1) + to_come < lead >= max(later) + to_come:
            return True
        return lead_probability(lead, max([*earlier, *later])) >= self.p


def lead_probability(lead: int, second: int) -> float:
    """P(x > 1/2) under Beta(``lead`` + 1, ``second`` + 1), as a tail of the binomial distribution.

    Args:
        lead: votes for the leading answer.
        second: votes for the next one.
    """
    votes = lead + second + 1
    return float(sum(math.comb(votes, k) for k in range(lead + 1)) / 2**votes)
