"""Reads a complete cache of responses and states, without the engine and the base model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cdserve.errors import ConfigError
from value_heads import CachedRollouts

SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A complete cache.

    Attributes:
        base_hash: hash of the base model.
        model: folder of the base model, or its name on the Hub; None if the cache lacks it.
        sets: responses with their states, without rewards, by name of the set.
    """

    base_hash: str
    model: str | None
    sets: Mapping[str, CachedRollouts]


def read_cache(folder: Path, *names: str) -> Cache:
    """The named sets of a cache of ``cdserve heads train``.

    Raises:
        ConfigError: the folder is not a cache, or lacks responses or states of a set.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        base_hash, model = settings["base_hash"], settings.get("model")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"--cache {folder} is not a cache of `cdserve heads train`: {error}"
        ) from error
    return Cache(
        base_hash=base_hash, model=model, sets={name: _complete_set(folder, name) for name in names}
    )


def _complete_set(folder: Path, name: str) -> CachedRollouts:
    texts = sum(_line_count(path) for path in folder.glob(f"{name}-rollouts-*.jsonl"))
    try:
        shards = CachedRollouts(folder, name)
    except FileNotFoundError as error:
        raise ConfigError(_incomplete(folder, name, 0, texts)) from error
    if (states := len(shards.ended)) != texts:
        raise ConfigError(_incomplete(folder, name, states, texts))
    return shards


def _line_count(path: Path) -> int:
    with path.open(encoding="utf-8") as file:
        return sum(1 for _ in file)


def _incomplete(folder: Path, name: str, states: int, texts: int) -> str:
    return (
        f"--cache {folder} is incomplete: set {name} has states of {states} and texts of {texts} "
        "responses; `cdserve heads train` completes it"
    )
