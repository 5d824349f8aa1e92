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
from cdserve.training.rewards import JobRewards
from cdserve.training.rollouts import Rollout, read
from value_heads import CachedRollouts

_BATCH = {"judge": 1, "ensemble": 1, "reward_model": 32, "http": 32}
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

    def check_bounds(self, low: float, high: float) -> None:
        """Checks that no reward is outside ``--bounds``.

        Raises:
            ConfigError: names the reward and its value.
        """
        for column, name in enumerate(self.names):
            rewards = torch.cat([rewards[:, column] for rewards in self.by_set.values()])
            outside = rewards[(rewards < low) | (rewards > high)]
            if len(outside):
                raise ConfigError(
                    f"reward {name} is {float(outside[0]):g} for a response; --bounds requires "
                    f"{low:g} to {high:g}"
                )


def score(rewards: JobRewards, cache: FilledCache, score_cut: bool = False) -> Scores:
    """The rewards of ``--rewards``, or those in the data file without any; none for pairs.

    Values of rewards with a digest are kept in the cache as they come, and are not computed again.

    Args:
        score_cut: whether responses that were cut are scored as they stand.

    Raises:
        ConfigError: a reward fails or is not finite.
    """
    if cache.pairs:
        return Scores((PREFERENCE,), cache.rewards)
    if rewards.by_name:
        values = asyncio.run(_computed(rewards, cache, score_cut))
        return Scores(tuple(rewards.by_name), values)
    return Scores(cache.reward_names, _in_file(cache, score_cut))


def _in_file(cache: FilledCache, score_cut: bool) -> dict[str, Tensor]:
    ended = {
        name: CachedRollouts(cache.folder, name, cut_ends=score_cut).ended for name in cache.counts
    }
    return {
        name: rewards.where(ended[name][:, None], math.nan)
        for name, rewards in cache.rewards.items()
    }


async def _computed(rewards: JobRewards, cache: FilledCache, score_cut: bool) -> dict[str, Tensor]:
    async with AsyncExitStack() as stack:
        models = _LazyModels(rewards, stack)
        return {
            name: torch.tensor(
                [
                    await _values(rewards, cache, score_cut, name, reward, models)
                    for reward in rewards.by_name
                ]
            ).T.contiguous()
            for name in cache.counts
        }


class _LazyModels:
    """The reward models, which start with the first missing value and stop with the stack."""

    def __init__(self, rewards: JobRewards, stack: AsyncExitStack) -> None:
        self._models = rewards.models
        self._stack = stack

    async def start(self, reward: Reward) -> None:
        """Starts the engines if the reward may need one and they do not run yet."""
        if self._models is not None and reward.kind in ("reward_model", "ensemble"):
            models, self._models = self._models, None
            torch.cuda.empty_cache()  # of the base model, which computed the states
            await self._stack.enter_async_context(models.running())


async def _values(
    rewards: JobRewards,
    cache: FilledCache,
    score_cut: bool,
    name: str,
    reward: str,
    models: _LazyModels,
) -> list[float]:
    """One reward of all responses of a set."""
    ended = CachedRollouts(cache.folder, name, cut_ends=score_cut).ended.tolist()
    digest = rewards.digests.get(reward)
    path = cache.folder / f"{name}-rewards-{digest}.jsonl"
    with nullcontext() if digest is None else Journal(path, key="response") as journal:
        values = [math.nan] * len(ended)
        for record in journal or ():
            if ended[record["response"]]:
                values[record["response"]] = record["reward"]
        missing = [end and math.isnan(value) for end, value in zip(ended, values, strict=True)]
        if any(missing):
            await models.start(rewards.by_name[reward])
        kind = rewards.by_name[reward].kind
        batches = _batches(cache, name, missing, _BATCH.get(kind, _SEQUENTIAL_BATCH))
        total, done = sum(ended), sum(ended) - sum(missing)
        with tqdm(total=total, initial=done, desc=f"{name}: {reward}", unit="response") as bar:

            async def call_until_done() -> None:
                for batch in batches:  # shared with the other callers
                    responses = [rollout for _, rollout in batch]
                    scored = await _call(rewards, cache, reward, responses)
                    for (index, _), value in zip(batch, scored, strict=True):
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
    rewards: JobRewards, cache: FilledCache, name: str, rollouts: Sequence[Rollout]
) -> list[float]:
    responses = [_response(cache, rollout) for rollout in rollouts]
    try:
        values = [float(value) for value in await rewards.by_name[name].score(responses)]
    except Exception as error:
        several = "" if len(rollouts) == 1 else f"one of {len(rollouts)} responses, the first "
        details = f": {error.details}" if isinstance(error, RewardFailure) else ""
        raise ConfigError(
            f"--rewards {name} failed on {several}{safe_repr(rollouts[0].text)}: {error!r}{details}"
        ) from error
    for rollout, value in zip(rollouts, values, strict=True):
        if not math.isfinite(value):
            raise ConfigError(
                f"--rewards {name} is {value} for {safe_repr(rollout.text)}; it must be finite"
            )
    return values


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
