"""The operator's value heads, checked before the engine starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cdserve.config import Settings, ValueHeadReward
from cdserve.errors import ConfigError
from value_heads import HeadConfig, check_base


@dataclass(frozen=True, slots=True)
class Heads:
    """What is attached, and which column of the value table each reward reads."""

    paths: tuple[str, ...]
    columns: Mapping[str, int]
    kinds: Mapping[str, str]
    width: int
    """Columns of the table: the outputs of all heads."""


def attach(settings: Settings) -> Heads:
    """The heads that the settings' rewards name, each loaded once.

    Raises:
        ConfigError: a head cannot be read, does not fit the model, or has no such output.
    """
    configs: dict[str, HeadConfig] = {}
    first_column: dict[str, int] = {}
    columns: dict[str, int] = {}
    kinds: dict[str, str] = {}
    width = 0
    for name, reward in settings.rewards.items():
        if not isinstance(reward, ValueHeadReward):
            continue
        if reward.path not in configs:
            configs[reward.path] = _read(name, reward, settings.model)
            first_column[reward.path] = width
            width += len(configs[reward.path].rewards)
        config = configs[reward.path]
        columns[name] = first_column[reward.path] + _output(name, reward, config)
        kinds[name] = config.kind
    return Heads(tuple(configs), columns, kinds, width)


def _read(name: str, reward: ValueHeadReward, model: str) -> HeadConfig:
    key = f"rewards.{name}.path"
    try:
        text = (Path(reward.path) / "config.json").read_text(encoding="utf-8")
        config = HeadConfig.from_json(text)
        if Path(model).is_dir():
            check_base(config, Path(model), force=reward.force)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {reward.path}: {error}") from error
    if config.layer != -1 or not config.post_norm:
        raise ConfigError(
            f"{key}: the head reads layer {config.layer}, post_norm {config.post_norm}; the engine "
            "has layer -1 after the final norm"
        )
    return config


def _output(name: str, reward: ValueHeadReward, config: HeadConfig) -> int:
    if reward.output is None and len(config.rewards) == 1:
        return 0
    if reward.output not in config.rewards:
        raise ConfigError(
            f"rewards.{name}.output is {reward.output!r}; the head has {', '.join(config.rewards)}"
        )
    return config.rewards.index(reward.output)
