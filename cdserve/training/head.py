"""The initial head of a training job, and its method."""

from pathlib import Path

import torch
from transformers import AutoConfig

from cdserve.errors import ConfigError
from cdserve.training.backbone import device
from cdserve.training.job import TrainingJob
from cdserve.training.score import Scores
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


def new_head(job: TrainingJob, model: Path, base_hash: str, scores: Scores, longest: int) -> Head:
    """The initial head: new weights, or the weights of ``--start``.

    Args:
        scores: rewards; mean and standard deviation in the training set become the head's shift and
            scale.
        longest: tokens of the longest training response; the limit of a head that reads positions.

    Raises:
        ConfigError: a reward is constant, or the head of ``--start`` has another configuration.
    """
    config = _config(job, model, base_hash, scores, longest)
    torch.manual_seed(job.options.seed)
    if job.head.start is not None:
        return _start(job.head.start, config)
    kind = ValueHead if config.architecture in ValueHead.architectures else QHead
    return kind(config).to(device())


def method(job: TrainingJob) -> Method:
    """The training method of the job.

    Raises:
        ConfigError: the teacher cannot be read, or is not a Q-head.
    """
    if job.method == "td":
        return TemporalDifference() if job.lam is None else TemporalDifference(job.lam)
    if job.method != "cdq":
        return MonteCarlo()
    if job.teacher is None:
        return ControlledQ()
    teacher = _load("--teacher", job.teacher)
    if not isinstance(teacher, QHead):
        raise ConfigError(
            f"--teacher {job.teacher} has architecture {teacher.config.architecture}; it must be a "
            "Q-head"
        )
    return ControlledQ(teacher)


def _config(
    job: TrainingJob, model: Path, base_hash: str, scores: Scores, longest: int
) -> HeadConfig:
    text = AutoConfig.from_pretrained(model).get_text_config()
    shift, scale = _shift_and_scale(job, scores)
    head = job.head
    return HeadConfig(
        architecture=head.architecture,
        kind="mean" if job.beta is None else "soft",
        beta=job.beta,
        output="identity" if head.bounds is None else "sigmoid",
        rewards=scores.names,
        shift=shift,
        scale=scale,
        base_model=job.base_name or job.data.model,
        base_hash=base_hash,
        hidden_size=text.hidden_size,
        mlp_width=(head.mlp_width or text.hidden_size) if head.architecture == "mlp" else None,
        rank=(head.rank or _RANK) if head.architecture == "lowrank" else None,
        vocab_size=text.vocab_size if head.architecture in QHead.architectures else None,
        position_limit=longest if head.position else None,
    )


def _shift_and_scale(
    job: TrainingJob, scores: Scores
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    names = scores.names
    if job.method == "bt":
        return (0.0,), (1.0,)
    if job.head.bounds is not None:
        low, high = job.head.bounds
        return (low,) * len(names), (high - low,) * len(names)
    rewards = scores.by_set["train"]
    ended = rewards[~rewards.isnan().any(1)]
    scale = ended.std(0).tolist()
    for name, spread in zip(names, scale, strict=True):
        if not spread > 0:
            raise ConfigError(f"reward {name} has the same value for all {len(ended)} responses")
    return tuple(ended.mean(0).tolist()), tuple(scale)


def _start(folder: Path, config: HeadConfig) -> Head:
    """The head of ``--start``, if its configuration is that of the head to train."""
    head = _load("--start", folder)
    same = ("architecture", "kind", "beta", "output", "rewards", "rank", "mlp_width", "base_hash")
    for name in same:
        actual, required = getattr(head.config, name), getattr(config, name)
        if actual != required:
            raise ConfigError(f"--start {folder} has {name} {actual}, not {required}")
    limit = head.config.position_limit
    if (limit is None) != (config.position_limit is None):
        required = "none without --position" if config.position_limit is None else "one"
        raise ConfigError(f"--start {folder} has position_limit {limit}; it must have {required}")
    return head


def _load(flag: str, folder: Path) -> Head:
    try:
        return load_head(folder).to(device())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{flag} {folder}: {error}") from error
