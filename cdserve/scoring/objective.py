"""Objectives: weighted sums of rewards that requests ask for."""

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdserve.decoders.candidate import Outlook, Score
from cdserve.errors import PolicyError, RewardFailure, ScoringError, safe_repr
from cdserve.failures import Details, log_failure
from cdserve.observability.metrics import REWARD_FAILURES
from cdserve.policy import FIELD, Policy
from cdserve.scoring.reward import OnFailure, Response, Reward


@dataclass(frozen=True, slots=True)
class Objective:
    """Rewards with their weights.

    Attributes:
        details: recipient of the text of a reward's exception.
        final: objective of finished responses where all that are compared have finished; None for
            the same.
    """

    weights: Mapping[str, float]
    rewards: Mapping[str, Reward]
    details: Details = "log"
    final: "Objective | None" = None

    @property
    def reads_values(self) -> bool:
        """Whether the engine must compute values."""
        return any(reward.reads_values for reward in self._all)

    @property
    def reads_text(self) -> bool:
        """Whether responses must be detokenised for scoring."""
        return any(reward.reads_text for reward in self._all)

    @property
    def token_stats(self) -> list[str]:
        """Statistics of the tokens of responses that the engine must compute."""
        return sorted(set[str]().union(*(reward.token_stats for reward in self._all)))

    @property
    def _all(self) -> Sequence[Reward]:
        """The rewards, final ones included."""
        return [*self.rewards.values(), *(() if self.final is None else self.final._all)]

    def outlook(self, tokens: int) -> Outlook | None:
        """Rest of a response after an unfinished prefix, in units of the weighted sum.

        Deviations and positive gains add as those of uncorrelated rewards: the root of the sum of
        their squares. The tokens to come are the fewest that a reward's figures have.

        Args:
            tokens: length of the prefix, at least 1.

        Returns:
            None if a reward of nonzero weight has no figures.
        """
        rewards = [
            (weight / self.rewards[name].options.std, self.rewards[name].held_out)
            for name, weight in self.weights.items()
            if weight != 0
        ]
        scaled = [(scale, figures.at(tokens)) for scale, figures in rewards if figures is not None]
        if len(scaled) < len(rewards):
            return None
        gains = [[scale * max(0.0, gain) for gain in outlook.gains] for scale, outlook in scaled]
        return Outlook(
            tokens=min((outlook.tokens for _, outlook in scaled), default=0.0),
            deviation=math.hypot(*(scale * outlook.deviation for scale, outlook in scaled)),
            gains=[math.hypot(*same_n) for same_n in zip(*gains, strict=False)],
        )

    @property
    def score_variance(self) -> float | None:
        """Variance of a score of independent, standardised rewards, whose mean is 0.

        None unless all rewards of nonzero weight are standardised.
        """
        weighted = {name: weight for name, weight in self.weights.items() if weight != 0}
        if not weighted or not all(self.rewards[name].options.has_statistics for name in weighted):
            return None
        return math.fsum(weight * weight for weight in weighted.values())

    async def score(self, responses: Sequence[Response], request_id: str = "") -> list[Score]:
        """Weighted sum and its parts, for each candidate of one decision.

        All rewards are scored at the same time; ``on_failure`` tells what happens if one fails.

        Args:
            request_id: id of the request in the log.

        Raises:
            ScoringError: a reward with ``on_failure: error`` failed or is not a finite number, or
                the sum is not a finite number.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    name: group.create_task(self._values(name, responses, request_id))
                    for name in self.rewards
                }
        except* ScoringError as failures:
            raise failures.exceptions[0] from failures.exceptions[0].__cause__
        results = {name: task.result() for name, task in tasks.items()}
        by_reward = {name: values for name, values in results.items() if values is not None}
        failed = tuple(name for name in results if name not in by_reward)
        undecided = any(self.rewards[name].options.on_failure == "base" for name in failed)
        return [
            self._sum({name: values[i] for name, values in by_reward.items()}, failed, undecided)
            for i in range(len(responses))
        ]

    async def per_token(
        self, prefixes: Sequence[Response], request_id: str = ""
    ) -> dict[str, list[float]]:
        """Rewards that have a value per token, for each prefix of one response.

        Raises:
            ScoringError: as in ``score``.
        """
        names = [name for name, reward in self.rewards.items() if reward.per_token]
        results = {name: await self._values(name, prefixes, request_id) for name in names}
        return {name: values for name, values in results.items() if values is not None}

    async def _values(
        self, name: str, responses: Sequence[Response], request_id: str
    ) -> list[float] | None:
        """One reward of all responses; None if it failed and ``on_failure`` lets others decide."""
        reward = self.rewards[name]
        try:
            return await _scored(reward, responses)
        except Exception as error:  # the operator's function may raise anything
            on_failure, subject = reward.options.on_failure, f"reward {name!r}"
            report_failure(name, subject, error, on_failure, self.details, request_id)
            return None

    def _sum(self, rewards: dict[str, float], failed: tuple[str, ...], undecided: bool) -> Score:
        """The score; 0 if undecided, so that the first candidate is selected."""
        parts = {
            name: self.weights[name] * self.rewards[name].options.standardised(value)
            for name, value in rewards.items()
            if self.weights[name] != 0
        }
        total = float(sum(parts.values()))  # a float even without parts
        if not math.isfinite(total):
            raise ScoringError(f"the weighted sum of the rewards is {total}, not a finite number")
        return Score(0.0 if undecided else total, rewards, failed, parts)


def report_failure(
    name: str,
    subject: str,
    error: Exception,
    on_failure: OnFailure,
    details: Details,
    request_id: str,
) -> None:
    """Counts and logs the failure of a reward or a pairwise judge.

    Args:
        name: name in the settings.
        subject: noun phrase for it.
        error: the exception.
        on_failure: what a decision does without it.
        details: recipient of the exception's text.
        request_id: id of the request in the log.

    Raises:
        ScoringError: ``on_failure`` is ``error``.
    """
    REWARD_FAILURES.labels(name, on_failure).inc()
    fails = on_failure == "error"
    level = logging.ERROR if fails else logging.WARNING
    message = log_failure(subject, error, details, request_id, level)
    if fails:
        raise ScoringError(message) from error


async def _scored(reward: Reward, responses: Sequence[Response]) -> list[float]:
    """Reward of each response, as floats."""
    limit = reward.options.timeout
    try:
        async with asyncio.timeout(limit) as clock:
            values = [float(value) for value in await reward.score(responses)]
    except TimeoutError as error:
        if not clock.expired():  # raised by the reward itself
            raise
        raise RewardFailure(f"took longer than its timeout of {limit:g} s") from error
    for value in values:
        if not math.isfinite(value):
            raise RewardFailure(f"is {value}, not a finite number")
    return values


def advise(rewards: Mapping[str, Reward]) -> str | None:
    """Possibilities of a server without rewards other than the model's own confidence, in words.

    None for a server with other rewards.
    """
    if any(reward.kind != "confidence" for reward in rewards.values()):
        return None
    confidence = "Its rewards are the model's own confidence, which is no judgement of quality. "
    return (
        (confidence if rewards else "")
        + "Without a reward, best_of_n selects by a vote by count or by mbr. A reward in the "
        "server's settings adds selection by quality."
    )


def objective(
    policy: Policy,
    rewards: Mapping[str, Reward],
    default: str | None,
    details: Details = "log",
) -> Objective:
    """The objective that a policy asks for.

    Args:
        default: reward of policies that name none; None if the server has no default.
        details: recipient of the text of a reward's exception.

    Raises:
        PolicyError: a reward is unknown, or the method scores prefixes and the reward does not.
    """
    final = None
    if policy.final_weights is not None:
        _check_known("final_rewards", policy.final_weights, rewards)
        chosen = {name: rewards[name] for name in policy.final_weights}
        final = Objective(policy.final_weights, chosen, details)
    weights = policy.rewards
    if weights is None:
        if default is None and not policy.requires_rewards:
            return Objective({}, {})
        if default is None:
            raise PolicyError(
                f"{FIELD}.rewards",
                "is missing, and this server has "
                + (f"no default among {', '.join(sorted(rewards))}" if rewards else "no rewards")
                + ("" if (advice := advise(rewards)) is None else f". {advice}"),
            )
        weights = {default: 1.0}
    _check_known("rewards", weights, rewards)
    for name in weights:
        if policy.outlook_field and weights[name] != 0:
            _check_outlook(policy.outlook_field, name, weights[name], rewards[name])
        if policy.values_prefixes and not rewards[name].prefixes:
            raise PolicyError(
                f"{FIELD}.rewards.{name}",
                f"scores finished responses only, and this policy of method {policy.method!r} "
                "scores prefixes; use it with 'best_of_n' without 'race', with the 'lookahead' of "
                "'blockwise_cd', or in the 'final_rewards' of a search",
                reason="combination",
            )
    return Objective(weights, {name: rewards[name] for name in weights}, details, final)


def _check_known(field: str, weights: Mapping[str, float], rewards: Mapping[str, Reward]) -> None:
    """Raises PolicyError for a name that is not a reward of the server."""
    for name in weights:
        if name not in rewards:
            raise PolicyError(
                f"{FIELD}.{field}",
                f"names {safe_repr(name)}; this server has {', '.join(sorted(rewards)) or 'none'}",
            )


def _check_outlook(field: str, name: str, weight: float, reward: Reward) -> None:
    """Checks that a reward has the figures that a field requires."""
    detail = None
    if reward.held_out is None:
        detail = (
            "has none: it must be a value head of mean values whose report.json has them "
            "(docs/heads.md)"
        )
    elif weight < 0:
        detail = "has a negative weight, and the figures are those of high values"
    if detail is not None:
        raise PolicyError(
            f"{FIELD}.{field}",
            f"requires figures on held-out responses; reward {safe_repr(name)} {detail}",
            reason="combination",
        )
