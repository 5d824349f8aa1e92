"""Rewards of their own for responses that have ended."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from pydantic import Field

from cdserve.decoders.candidate import Prefix, Score, key
from cdserve.policy import MAX_REWARDS, Policy, Weight

Scorer = Callable[[Sequence[Prefix]], Awaitable[Sequence[Score]]]


class FinalRewardsField(Policy):
    """Base of the policies of searches that may compare ended responses by other rewards."""

    final_rewards: dict[str, Weight] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_REWARDS,
        description="Weight of each reward where all candidates that are compared have ended; "
        "these rewards need not score prefixes. Ended and unfinished candidates are compared by "
        "`rewards`. If absent, `rewards` compare all.",
    )

    @property
    def final_weights(self) -> Mapping[str, float] | None:
        return self.final_rewards


async def final_scores(
    final_score: Scorer, prefixes: Sequence[Prefix], scores: Sequence[Score]
) -> list[Score]:
    """Final scores of ended prefixes, which also list the rewards of their scores so far.

    Equal prefixes share one score: computed again, it could differ in a last digit.

    Args:
        final_score: computes the final scores.
        scores: scores of the prefixes by the rewards that score prefixes too.
    """
    unique = {key(prefix): prefix for prefix in prefixes}
    final = dict(zip(unique, await final_score(list(unique.values())), strict=True))
    found = {
        prefix_key: replace(
            final[prefix_key],
            rewards={**score.rewards, **final[prefix_key].rewards},
        )
        for prefix_key, score in zip(map(key, prefixes), scores, strict=True)
    }
    return [found[key(prefix)] for prefix in prefixes]
