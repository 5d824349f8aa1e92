"""Rewards of the responses in a cache."""

import asyncio
import math
from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm import tqdm

from cdserve.errors import ConfigError, safe_repr
from cdserve.scoring import Response
from cdserve.training.fill_cache import FilledCache
from cdserve.training.job import TrainingJob
from cdserve.training.rollouts import Rollout, read


def score(job: TrainingJob, cache: FilledCache, name: str) -> Tensor:
    """The rewards of a set's responses, float32 [B, G]; NaN for a response without a reward.

    Raises:
        ConfigError: a reward fails, is not finite, or is outside ``--bounds``.
    """
    rollouts = tqdm(read(cache.folder, name), f"{name}: rewards", unit="response")
    return torch.tensor(asyncio.run(_all(job, cache, rollouts)))


async def _all(
    job: TrainingJob, cache: FilledCache, rollouts: Iterable[Rollout]
) -> list[list[float]]:
    return [await _rewards(job, cache, rollout) for rollout in rollouts]


async def _rewards(job: TrainingJob, cache: FilledCache, rollout: Rollout) -> list[float]:
    if not (rollout.ended or job.score_cut):
        return [math.nan] * len(job.rewards)
    response = Response(
        prompt=cache.prompts[rollout.prompt],
        text=rollout.text,
        tokens=len(rollout.tokens),
        finished=True,
        values={},
    )
    return [await _reward(job, name, response) for name in job.rewards]


async def _reward(job: TrainingJob, name: str, response: Response) -> float:
    try:
        (reward,) = await job.rewards[name].score([response])
    except Exception as error:
        raise ConfigError(
            f"--rewards {name} failed on {safe_repr(response.text)}: {error!r}"
        ) from error
    if not math.isfinite(reward):
        raise ConfigError(
            f"--rewards {name} is {reward} for {safe_repr(response.text)}; it must be finite"
        )
    bounds = job.head.bounds
    if bounds is not None and not bounds[0] <= reward <= bounds[1]:
        raise ConfigError(
            f"--rewards {name} is {reward:g} for {safe_repr(response.text)}; --bounds requires "
            f"{bounds[0]:g} to {bounds[1]:g}"
        )
    return reward
