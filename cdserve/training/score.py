"""Rewards of the responses in a cache."""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from tqdm import tqdm

from cdserve.client.journal import Journal
from cdserve.errors import ConfigError, RewardFailure, safe_repr
from cdserve.scoring import Response, Reward
from cdserve.training.fill_cache import FilledCache
from cdserve.training.job import TrainingJob
from cdserve.training.rollouts import Rollout, read
from value_heads import CachedRollouts

_BATCH = {"judge": 1, "ensemble": 1, "reward_model": 32}
"""Responses per call, for the kinds that queue the responses of concurrent calls."""
_IN_FLIGHT = 1024
"""Responses of concurrent calls, for these kinds."""
_SEQUENTIAL_BATCH = 16
"""Responses per call, for kinds that are called once at a time."""

PREFERENCE = "preference"
"""Name of the output of a head that learns from pairs."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards of all responses.

    Attributes:
        names: names of the G rewards.
        by_set: float32 [B, G] by set; NaN for a response without a reward. [B, 0] for pairs.
    """

    names: tuple[str, ...]
    by_set: Mapping[str, Tensor]


def score(job: TrainingJob, cache: FilledCache) -> Scores:
    """The rewards of ``--rewards``, or those in the data file if the job has none; none for pairs.

    Values of rewards with a digest are kept in the cache as they come, and are not computed again.

    Raises:
        ConfigError: a reward fails, is not finite, or is outside ``--bounds``.
    """
    if cache.pairs:
        return Scores((PREFERENCE,), cache.rewards)
    if job.rewards.by_name:
        scores = Scores(tuple(job.rewards.by_name), asyncio.run(_computed(job, cache)))
    else:
        scores = Scores(cache.reward_names, _in_file(job, cache))
    _check_bounds(job, scores)
    return scores


def _in_file(job: TrainingJob, cache: FilledCache) -> dict[str, Tensor]:
    ended = {
        name: CachedRollouts(cache.folder, name, cut_ends=job.score_cut).ended
        for name in cache.counts
    }
    return {
        name: rewards.where(ended[name][:, None], math.nan)
        for name, rewards in cache.rewards.items()
    }


async def _computed(job: TrainingJob, cache: FilledCache) -> dict[str, Tensor]:
    async with AsyncExitStack() as stack:
        models = _LazyModels(job, stack)
        return {
            name: torch.tensor(
                [await _values(job, cache, name, reward, models) for reward in job.rewards.by_name]
            ).T.contiguous()
            for name in cache.counts
        }


class _LazyModels:
    """The reward models, which start with the first missing value and stop with the stack."""

    def __init__(self, job: TrainingJob, stack: AsyncExitStack) -> None:
        self._models = job.rewards.models
        self._stack = stack

    async def start(self, reward: Reward) -> None:
        """Starts the engines if the reward may need one and they do not run yet."""
        if self._models is not None and reward.kind in ("reward_model", "ensemble"):
            models, self._models = self._models, None
            torch.cuda.empty_cache()  # of the base model, which computed the states
            await self._stack.enter_async_context(models.running())


async def _values(
    job: TrainingJob, cache: FilledCache, name: str, reward: str, models: _LazyModels
) -> list[float]:
    """One reward of all responses of a set."""
    ended = CachedRollouts(cache.folder, name, cut_ends=job.score_cut).ended.tolist()
    digest = job.rewards.digests.get(reward)
    path = cache.folder / f"{name}-rewards-{digest}.jsonl"
    with nullcontext() if digest is None else Journal(path, key="response") as journal:
        values = [math.nan] * len(ended)
        for record in journal or ():
            if ended[record["response"]]:
                values[record["response"]] = record["reward"]
        missing = [end and math.isnan(value) for end, value in zip(ended, values, strict=True)]
        if any(missing):
            await models.start(job.rewards.by_name[reward])
        kind = job.rewards.by_name[reward].kind
        batches = _batches(cache, name, missing, _BATCH.get(kind, _SEQUENTIAL_BATCH))
        total, done = sum(ended), sum(ended) - sum(missing)
        with tqdm(total=total, initial=done, desc=f"{name}: {reward}", unit="response") as bar:

            async def call_until_done() -> None:
                for batch in batches:  # shared with the other callers
                    rewards = await _call(job, cache, reward, [rollout for _, rollout in batch])
                    for (index, _), value in zip(batch, rewards, strict=True):
                        if journal is not None:
                            journal.add({"response": index, "reward": value})
                        values[index] = value
                    bar.update(len(batch))

            callers = _IN_FLIGHT // _BATCH[kind] if kind in _BATCH else 1
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(callers):
                        group.create_task(call_until_done())
            except* ConfigError as errors:
                raise errors.exceptions[0] from errors.exceptions[0].__cause__
    return values


def _batches(
    cache: FilledCache, name: str, missing: Sequence[bool], size: int
) -> Iterator[list[tuple[int, Rollout]]]:
    """Batches of the responses without a value, with their indices in the set."""
    rollouts = ((i, rollout) for i, rollout in enumerate(read(cache.folder, name)) if missing[i])
    while batch := list(islice(rollouts, size)):
        yield batch


async def _call(
    job: TrainingJob, cache: FilledCache, name: str, rollouts: Sequence[Rollout]
) -> list[float]:
    responses = [_response(cache, rollout) for rollout in rollouts]
    try:
        rewards = [float(value) for value in await job.rewards.by_name[name].score(responses)]
    except Exception as error:
        several = "" if len(rollouts) == 1 else f"one of {len(rollouts)} responses, the first "
        details = f": {error.details}" if isinstance(error, RewardFailure) else ""
        raise ConfigError(
            f"--rewards {name} failed on {several}{safe_repr(rollouts[0].text)}: {error!r}{details}"
        ) from error
    for rollout, reward in zip(rollouts, rewards, strict=True):
        if not math.isfinite(reward):
            raise ConfigError(
                f"--rewards {name} is {reward} for {safe_repr(rollout.text)}; it must be finite"
            )
    return rewards


def _response(cache: FilledCache, rollout: Rollout) -> Response:
    prompt = cache.prompts[rollout.prompt]
    return Response(
        prompt=cache.texts[rollout.prompt],
        text=rollout.text,
        tokens=len(rollout.tokens),
        finished=True,
        values={},
        messages=None if isinstance(prompt, str) else prompt,
    )


def _check_bounds(job: TrainingJob, scores: Scores) -> None:
    if (bounds := job.head.bounds) is None:
        return
    low, high = bounds
    for column, name in enumerate(scores.names):
        rewards = torch.cat([rewards[:, column] for rewards in scores.by_set.values()])
        outside = rewards[(rewards < low) | (rewards > high)]
        if len(outside):
            raise ConfigError(
                f"reward {name} is {float(outside[0]):g} for a response; --bounds requires "
                f"{low:g} to {high:g}"
            )
