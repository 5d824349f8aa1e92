"""Rewards of the responses in a cache."""

import asyncio
import math
from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm import tqdm

from cdserve.errors import ConfigError, safe_repr
from cdserve.scoring import Response
from cdserve.training.collect import Collection
from cdserve.training.job import Job
from cdserve.training.rollouts import Rollout, read


def score(job: Job, collection: Collection, name: str) -> Tensor:
    """The rewards of a set's responses, float32 [B, G]; NaN for one that was cut.

    Raises:
        ConfigError: a reward fails, is not finite, or lies outside the job's bounds.
    """
    rollouts = tqdm(read(collection.folder, name), f"rewards of {name}", unit="response")
    return torch.tensor(asyncio.run(_all(job, collection, rollouts)))


async def _all(job: Job, collection: Collection, rollouts: Iterable[Rollout]) -> list[list[float]]:
    return [await _rewards(job, collection, rollout) for rollout in rollouts]


async def _rewards(job: Job, collection: Collection, rollout: Rollout) -> list[float]:
    if not rollout.ended:
        return [math.nan] * len(job.rewards)
    response = Response(
        prompt=collection.prompts[rollout.prompt],
        text=rollout.text,
        tokens=len(rollout.tokens),
        finished=True,
        values={},
    )
    return [await _reward(job, name, response) for name in job.rewards]


async def _reward(job: Job, name: str, response: Response) -> float:
    try:
        (found,) = await job.rewards[name].score([response])
    except Exception as error:
        raise ConfigError(
            f"--rewards {name} failed on {safe_repr(response.text)}: {error!r}"
        ) from error
    if not math.isfinite(found):
        raise ConfigError(f"--rewards {name} is {found} for {safe_repr(response.text)}; not finite")
    if job.bounds is not None and not job.bounds[0] <= found <= job.bounds[1]:
        low, high = job.bounds
        raise ConfigError(
            f"--rewards {name} is {found:g} for {safe_repr(response.text)}; --bounds says from "
            f"{low:g} to {high:g}"
        )
    return found
