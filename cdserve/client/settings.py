"""How the answers in a folder were drawn, kept beside them, so that no others are mixed in."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdserve.errors import ConfigError, safe_repr

FILE = "settings.json"
_LONGEST = 400


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Those of the answers in a folder; None where there are none yet.

    Raises:
        ConfigError: the file holds something else.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} is {safe_repr(settings)}, no settings; name another --out")
    return settings


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Keeps those of the answers that are drawn next."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{FILE}.partial"
    partial.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / FILE)


def check_settings(folder: Path, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Checks that what is wanted is what the answers were drawn with.

    Args:
        kept: the settings of the answers.
        wanted: some of them.

    Raises:
        ConfigError: with the setting that differs and both its values.
    """
    for name, value in wanted.items():
        if kept.get(name) != value:
            raise ConfigError(
                f"--out {folder} was made with {name} {safe_repr(kept.get(name), _LONGEST)}, not "
                f"{safe_repr(value, _LONGEST)}; name another folder"
            )
