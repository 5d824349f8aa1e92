"""Rewards of a training job: Python functions, and rewards of the server's settings."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdserve import config
from cdserve.errors import ConfigError
from cdserve.scoring import Reward, build
from value_heads import hash_base

if TYPE_CHECKING:
    from cdserve.launch.reward_models import RewardModels

_FUNCTION = re.compile(r"(?P<name>[^=]+)=(?P<callable>\w+(\.\w+)*:\w+)")
_REFUSED = {
    "value_head": "a head learns from a reward of whole responses",
    "loglik": "its log-likelihoods are computed in the served engine",
    "log_ratio": "its log-likelihoods are computed in the served engine",
    "confidence": "it is computed in the served engine",
}
_KEPT = ("judge", "reward_model", "http", "ensemble")
"""Kinds whose values are worth keeping on disk."""
_IRRELEVANT = {
    *("on_failure", "timeout", "standardise", "prefixes", "concurrency", "retries"),
    *("max_batch", "max_wait", "api_key_env"),
}
"""Settings without effect on a reward's value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRewards:
    """Rewards of responses, with the engines that compute them.

    Attributes:
        by_name: rewards by output of the head.
        models: reward models, which must run while rewards are computed; None if there are none.
        digests: digest of each reward whose values may be kept on disk. It covers the settings that
            affect the value. The source of a Python function may change, so it has no digest.
    """

    by_name: Mapping[str, Reward]
    models: "RewardModels | None" = None
    digests: Mapping[str, str] = field(default_factory=dict)


def read_rewards(arguments: Sequence[str], path: Path | None) -> JobRewards:
    """Builds the rewards that ``--rewards`` names.

    Args:
        arguments: ``NAME`` of a reward in the settings, or ``NAME=MODULE:FUNCTION``.
        path: YAML file of the settings; None if all arguments are functions.

    Raises:
        ConfigError: an argument is invalid, or a reward is unknown or cannot be computed here.
    """
    if path is not None and not arguments:
        raise ConfigError(f"--config is {path}; it requires --rewards")
    settings = None if path is None else config.load(path)
    rewards: dict[str, config.Reward] = {}
    for argument in arguments:
        match = _FUNCTION.fullmatch(argument)
        name = match["name"] if match else argument
        if name in rewards:
            raise ConfigError(f"--rewards names {name} twice")
        if match:
            rewards[name] = config.PythonReward(kind="python", callable=match["callable"])
        else:
            rewards[name] = _reward(name, settings, path)
    parts = {} if settings is None else _parts(rewards, settings)
    for name, reward in (rewards | parts).items():
        if reason := _REFUSED.get(reward.kind):
            raise ConfigError(
                f"--rewards: {name} is of kind {reward.kind} and cannot be trained on: {reason}"
            )
    models = None if settings is None else _models(settings, rewards | parts)
    built = build(parts | rewards, models=None if models is None else models.outputs)
    identities = {
        name: _identity(reward, parts) for name, reward in rewards.items() if reward.kind in _KEPT
    }
    return JobRewards(
        by_name={name: built[name] for name in rewards},
        models=models,
        digests={name: _digest(value) for name, value in identities.items() if value is not None},
    )


def _reward(name: str, settings: config.Settings | None, path: Path | None) -> config.Reward:
    if settings is None:
        raise ConfigError(
            f"--rewards is {name}; it must be NAME=MODULE:FUNCTION, or the name of a reward of "
            "--config"
        )
    if name not in settings.rewards:
        raise ConfigError(
            f"--rewards names {name}; {path} has {', '.join(settings.rewards) or 'no rewards'}"
        )
    return settings.rewards[name]


def _parts(
    rewards: Mapping[str, config.Reward], settings: config.Settings
) -> dict[str, config.Reward]:
    """Rewards that the ensembles combine."""
    names = [
        part
        for reward in rewards.values()
        if isinstance(reward, config.EnsembleReward)
        for part in reward.of
    ]
    return {name: settings.rewards[name] for name in names if name in settings.rewards}


def _models(
    settings: config.Settings, rewards: Mapping[str, config.Reward]
) -> "RewardModels | None":
    if not any(reward.kind == "reward_model" for reward in rewards.values()):
        return None
    from cdserve.launch.reward_models import plan  # vLLM takes seconds to import

    return plan(settings.model_copy(update={"rewards": rewards}))


def _identity(reward: config.Reward, parts: Mapping[str, config.Reward]) -> Any:
    """Everything that determines the reward's value; None if it cannot be known."""
    values = reward.model_dump(mode="json", exclude=_IRRELEVANT)
    match reward:
        case config.PythonReward():
            return None
        case config.RewardModelReward(model=model) if Path(model).is_dir():
            try:
                return values | {"model": hash_base(Path(model))}
            except FileNotFoundError:  # weights in another format
                return None
        case config.EnsembleReward(of=of):
            combined = [
                (_identity(parts[name], parts), str(parts[name].standardise)) for name in of
            ]
            if any(identity is None for identity, _ in combined):
                return None
            return values | {"of": combined}
    return values


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
