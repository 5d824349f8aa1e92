"""Separate virtual environments for other projects' packages."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / ".envs"


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment under ``benchmarks/.envs``, made once by uv.

    Attributes:
        name: name of the folder.
        packages: requirements.
        alone: requirements that are installed without their dependencies.
        shown: packages whose versions are part of the results.
    """

    name: str
    packages: tuple[str, ...]
    shown: tuple[str, ...]
    alone: tuple[str, ...] = ()

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return FOLDER / self.name / "bin" / "python"

    def make(self) -> None:
        """Makes the environment, unless it exists with these requirements."""
        marker = FOLDER / self.name / "requirements.json"
        requirements = json.dumps([self.packages, self.alone])
        if marker.exists() and marker.read_text() == requirements:
            return
        print(f"making {FOLDER / self.name}", file=sys.stderr)
        _uv("venv", "--clear", "--python", sys.executable, str(FOLDER / self.name))
        install = ("pip", "install", "--compile-bytecode", "--python", str(self.python))
        # Without find-links, the CPU build of torch comes from torch's index.
        cpu = () if "PIP_FIND_LINKS" in os.environ else ("--torch-backend", "cpu")
        _uv(*install, *cpu, *self.packages)
        if self.alone:
            _uv(*install, "--no-deps", *self.alone)
        marker.write_text(requirements)

    def versions(self) -> dict[str, str]:
        """The installed versions of the packages in ``shown``."""
        code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
        command = [self.python, "-c", code, *self.shown]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return dict(zip(self.shown, output.split(), strict=True))


def _uv(*command: str) -> None:
    # uv ignores pip's find-links setting, which may provide torch for CPU.
    links = os.environ.get("PIP_FIND_LINKS")
    settings = os.environ | ({"UV_FIND_LINKS": links} if links else {})
    subprocess.run([sys.executable, "-m", "uv", "--quiet", *command], env=settings, check=True)
