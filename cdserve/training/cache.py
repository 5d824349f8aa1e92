"""A full cache of responses and states, read without the engine and the base model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cdserve.errors import ConfigError
from value_heads import CachedRollouts

SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """What others have collected.

    Attributes:
        base_hash: of the base model.
        model: the base model's folder, or its name on the Hub; None in caches that do not say it.
        sets: responses with their states, without rewards, by the name of the set.
    """

    base_hash: str
    model: str | None
    sets: Mapping[str, CachedRollouts]


def read_cache(folder: Path, *names: str) -> Cache:
    """The sets of a cache that ``cdserve heads train`` has filled.

    Raises:
        ConfigError: the folder is no cache, or lacks responses or states of a set.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        base_hash, model = settings["base_hash"], settings.get("model")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"--cache {folder} is no cache of `cdserve heads train`: {error}"
        ) from error
    return Cache(
        base_hash=base_hash, model=model, sets={name: _full(folder, name) for name in names}
    )


def _full(folder: Path, name: str) -> CachedRollouts:
    drawn = sum(_lines(path) for path in folder.glob(f"{name}-rollouts-*.jsonl"))
    try:
        shards = CachedRollouts(folder, name)
    except FileNotFoundError as error:
        raise ConfigError(_incomplete(folder, name, 0, drawn)) from error
    if (found := len(shards.ended)) != drawn:
        raise ConfigError(_incomplete(folder, name, found, drawn))
    return shards


def _lines(path: Path) -> int:
    with path.open(encoding="utf-8") as file:
        return sum(1 for _ in file)


def _incomplete(folder: Path, name: str, found: int, drawn: int) -> str:
    return (
        f"--cache {folder} is not complete: it has states of {found} and text of {drawn} responses "
        f"of {name}; `cdserve heads train` fills it"
    )
