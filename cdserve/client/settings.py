"""The settings file of a folder of answers; answers under other settings are not mixed in."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdserve.errors import ConfigError, safe_repr

FILE = "settings.json"
_LONGEST = 400


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the answers in a folder; None if there are no answers yet.

    Raises:
        ConfigError: the file cannot be read or does not hold settings.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} is {safe_repr(settings)}, not settings; choose another --out")
    return settings


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings of the answers that follow."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{FILE}.partial"
    partial.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / FILE)


def check_settings(folder: Path, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Checks that the settings of this run are those of the answers in the folder.

    Args:
        kept: the settings of the answers.
        wanted: the settings of this run, or some of them.

    Raises:
        ConfigError: a setting differs; names the setting and both values.
    """
    for name, value in wanted.items():
        if kept.get(name) != value:
            raise ConfigError(
                f"--out {folder} was made with {name} {safe_repr(kept.get(name), _LONGEST)}, not "
                f"{safe_repr(value, _LONGEST)}; choose another folder"
            )
