"""Environments of their own for other projects' packages, so that theirs and ours never meet."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / ".envs"


@dataclass(frozen=True, slots=True)
class Environment:
    """What uv installs there; made once under ``benchmarks/.envs``.

    Attributes:
        name: its folder.
        packages: requirements.
        alone: requirements that are installed without their dependencies.
        shown: packages whose versions the results name.
    """

    name: str
    packages: tuple[str, ...]
    shown: tuple[str, ...]
    alone: tuple[str, ...] = ()

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return FOLDER / self.name / "bin" / "python"

    def make(self) -> None:
        """Makes it, unless it is there with just these requirements."""
        done = FOLDER / self.name / "requirements.json"
        wanted = json.dumps([self.packages, self.alone])
        if done.exists() and done.read_text() == wanted:
            return
        print(f"making {FOLDER / self.name}", file=sys.stderr)
        _uv("venv", "--clear", "--python", sys.executable, str(FOLDER / self.name))
        install = ("pip", "install", "--compile-bytecode", "--python", str(self.python))
        # Without find-links, torch's own index has the CPU build.
        cpu = () if "PIP_FIND_LINKS" in os.environ else ("--torch-backend", "cpu")
        _uv(*install, *cpu, *self.packages)
        if self.alone:
            _uv(*install, "--no-deps", *self.alone)
        done.write_text(wanted)

    def versions(self) -> dict[str, str]:
        """The installed versions of what is shown."""
        code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
        command = [self.python, "-c", code, *self.shown]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return dict(zip(self.shown, found.split(), strict=True))


def _uv(*command: str) -> None:
    # uv does not read pip's find-links, which may have torch for CPU.
    links = os.environ.get("PIP_FIND_LINKS")
    settings = os.environ | ({"UV_FIND_LINKS": links} if links else {})
    subprocess.run([sys.executable, "-m", "uv", "--quiet", *command], env=settings, check=True)
