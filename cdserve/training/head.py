"""The head that a job begins with, and what it is fitted to."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig

from cdserve.errors import ConfigError
from cdserve.training.backbone import device
from cdserve.training.job import Job
from value_heads import (
    ControlledQ,
    Head,
    HeadConfig,
    Method,
    MonteCarlo,
    QHead,
    TemporalDifference,
    ValueHead,
    load_head,
)

_RANK = 64


def new_head(job: Job, model: Path, base_hash: str, rewards: Tensor) -> Head:
    """A head with fresh weights, or with those that the job says to start from.

    Args:
        rewards: float32 [B, G] of the training set, whose mean and spread become the head's shift
            and scale; NaN where a response was cut.

    Raises:
        ConfigError: a reward is the same everywhere, or the head to start from is of another kind.
    """
    config = _config(job, model, base_hash, rewards)
    torch.manual_seed(job.options.seed)
    if job.start is not None:
        return _started(job.start, config)
    kind = ValueHead if config.architecture in ValueHead.architectures else QHead
    return kind(config).to(device())


def method(job: Job) -> Method:
    """The targets that the job asks for.

    Raises:
        ConfigError: the teacher cannot be read, or is no Q-head.
    """
    if job.method == "td":
        return TemporalDifference() if job.lam is None else TemporalDifference(job.lam)
    if job.method != "cdq":
        return MonteCarlo()
    if job.teacher is None:
        return ControlledQ()
    teacher = _loaded("--teacher", job.teacher)
    if not isinstance(teacher, QHead):
        raise ConfigError(
            f"--teacher {job.teacher} is no Q-head, but {teacher.config.architecture}"
        )
    return ControlledQ(teacher)


def _config(job: Job, model: Path, base_hash: str, rewards: Tensor) -> HeadConfig:
    text = AutoConfig.from_pretrained(model).get_text_config()
    shift, scale = _range(job, rewards)
    return HeadConfig(
        architecture=job.architecture,
        kind="mean" if job.beta is None else "soft",
        beta=job.beta,
        output="identity" if job.bounds is None else "sigmoid",
        rewards=tuple(job.rewards),
        shift=shift,
        scale=scale,
        base_model=job.base_name or job.data.model,
        base_hash=base_hash,
        hidden_size=text.hidden_size,
        mlp_width=(job.mlp_width or text.hidden_size) if job.architecture == "mlp" else None,
        rank=(job.rank or _RANK) if job.architecture == "lowrank" else None,
        vocab_size=text.vocab_size if job.architecture in QHead.architectures else None,
    )


def _range(job: Job, rewards: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    names = list(job.rewards)
    if job.bounds is not None:
        low, high = job.bounds
        return (low,) * len(names), (high - low,) * len(names)
    ended = rewards[~rewards.isnan().any(1)]
    if len(ended) < 2:
        raise ConfigError(
            f"{len(ended)} of {len(rewards)} training responses ended within --max-tokens "
            f"{job.data.max_tokens}; at least 2 are needed"
        )
    scale = ended.std(0).tolist()
    for name, spread in zip(names, scale, strict=True):
        if not spread > 0:
            raise ConfigError(f"--rewards {name} is the same for all {len(ended)} responses")
    return tuple(ended.mean(0).tolist()), tuple(scale)


def _started(folder: Path, config: HeadConfig) -> Head:
    head = _loaded("--start", folder)
    same = ("architecture", "kind", "beta", "output", "rewards", "rank", "mlp_width", "base_hash")
    for name in same:
        found, wanted = getattr(head.config, name), getattr(config, name)
        if found != wanted:
            raise ConfigError(f"--start {folder} has {name} {found}, not {wanted}")
    return head


def _loaded(flag: str, folder: Path) -> Head:
    try:
        return load_head(folder).to(device())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{flag} {folder}: {error}") from error
