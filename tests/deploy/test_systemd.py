"""The unit of systemd is valid, and starts a server that the command line accepts."""

import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

from cdserve.cli import parser
from tests.waiting import HANG_SECONDS

from .files import DEPLOY
from .programs import program

UNIT = DEPLOY / "systemd" / "cdserve.service"
COMMAND = "/opt/cdserve/bin/cdserve"


def test_systemd_verifies_the_unit(tmp_path: Path) -> None:
    """The environment of the tests stands for ``/opt/cdserve``, which is not on this machine."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(COMMAND, sys.executable))
    ran = subprocess.run(
        [program("systemd-analyze"), "verify", unit],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_unit_waits_longer_than_the_server_drains() -> None:
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT.read_text())
    command, *arguments = shlex.split(unit["Service"]["ExecStart"])
    options, flags = parser().parse_known_args(arguments)
    assert (command, options.command) == (COMMAND, "serve")
    timeout = flags[flags.index("--shutdown-timeout") + 1]
    assert int(unit["Service"]["TimeoutStopSec"]) > int(timeout) + 30
