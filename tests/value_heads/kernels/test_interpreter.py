"""The kernels' tests, and those of what is over them, in Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.waiting import HANG_SECONDS

HERE = Path(__file__).parent
WORKER = HERE.parents[1] / "worker"
TESTS = [
    *sorted(HERE.glob("test_fused_*.py")),
    HERE.parent / "test_frontier.py",
    WORKER / "test_steerer.py",
    WORKER / "test_scorer.py",
]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="this is the interpreter")
def test_kernel_and_worker_tests_pass_in_the_triton_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, TESTS)]
    run = subprocess.run(
        command,
        cwd=HERE.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert run.returncode == 0, run.stdout


def test_importing_value_heads_does_not_import_triton() -> None:
    code = (
        "import sys, value_heads, value_heads.kernels; sys.exit('triton.language' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=HANG_SECONDS).returncode == 0
