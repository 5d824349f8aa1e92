"""Value heads and Q-heads, read and checked before the engine starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cdserve.config import Settings, ValueHeadReward
from cdserve.errors import ConfigError
from cdserve.scoring import HeadOutput, HeldOut
from value_heads import Head, HeadConfig, QHead, ValueHead, check_base


@dataclass(slots=True)
class HeadSet:
    """Heads of one kind, each loaded once, and the output that each reward reads."""

    kind: type[Head]
    configs: dict[str, HeadConfig] = field(default_factory=dict)
    """Configuration by folder of the head."""
    columns: dict[str, int] = field(default_factory=dict)
    """By reward: index of its output among the outputs of all heads, in order."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Folders of the heads, in order."""
        return tuple(self.configs)

    @property
    def width(self) -> int:
        """Number of outputs of all heads."""
        return sum(len(config.rewards) for config in self.configs.values())

    def add(self, name: str, key: str, path: str, reward: ValueHeadReward, model: str) -> None:
        """Adds the head at ``path`` for a reward.

        Args:
            name: the reward.
            key: setting that names the path, for error messages.
            path: folder of the head.
            reward: settings of the reward.
            model: folder or Hub id of the served model.

        Raises:
            ConfigError: the head cannot be read, does not fit the model, or lacks the output.
        """
        if path not in self.configs:
            self.configs[path] = _read(self.kind, key, path, reward, model)
        before = sum(len(self.configs[one].rewards) for one in self.paths[: self.paths.index(path)])
        self.columns[name] = before + _output(name, reward, self.configs[path])


@dataclass(frozen=True, slots=True)
class Heads:
    """All heads of a server."""

    values: HeadSet
    q: HeadSet

    @property
    def outputs(self) -> Mapping[str, HeadOutput]:
        """Value head output of each reward that has one."""
        outputs = [
            HeadOutput(
                kind=config.kind,
                shift=shift,
                scale=scale,
                prefixes=config.architecture != "mahalanobis",  # scores whole responses only
                held_out=HeldOut.read(Path(path), output),
            )
            for path, config in self.values.configs.items()
            for output, shift, scale in zip(config.rewards, config.shift, config.scale, strict=True)
        ]
        return {name: outputs[column] for name, column in self.values.columns.items()}


def attach(settings: Settings) -> Heads:
    """Reads the heads that the rewards name.

    Raises:
        ConfigError: a head cannot be read, does not fit the model, or lacks an output.
    """
    heads = Heads(HeadSet(ValueHead), HeadSet(QHead))
    for name, reward in settings.rewards.items():
        if not isinstance(reward, ValueHeadReward):
            continue
        heads.values.add(name, f"rewards.{name}.path", reward.path, reward, settings.model)
        if reward.q_head is not None:
            heads.q.add(name, f"rewards.{name}.q_head", reward.q_head, reward, settings.model)
    return heads


def _read(kind: type[Head], key: str, path: str, reward: ValueHeadReward, model: str) -> HeadConfig:
    try:
        config = HeadConfig.from_json((Path(path) / "config.json").read_text(encoding="utf-8"))
        if Path(model).is_dir():
            check_base(config, Path(model), force=reward.force)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {path}: {error}") from error
    if config.architecture not in kind.architectures:
        raise ConfigError(
            f"{key}: {path}: architecture is {config.architecture}; a {kind.name} is one of "
            f"{', '.join(kind.architectures)}"
        )
    if config.layer != -1 or not config.post_norm:
        raise ConfigError(
            f"{key}: the head reads layer {config.layer}, post_norm {config.post_norm}; the engine "
            "provides only layer -1, after the final norm"
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
