"""Programs that the tests run if the machine has them; .ci/run installs them."""

import os
import shutil

import pytest


def program(name: str) -> str:
    """The path of a program; skips the test without it, and fails in CI."""
    path = shutil.which(name)
    if path is None:
        reason = f"needs {name}: apt-get install {name.replace('promtool', 'prometheus')}"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    return path
