"""Model runner V2 and the Triton kernels on a CPU: what a process's environment needs for them."""

import os
from collections.abc import Mapping
from pathlib import Path

SHIM = Path(__file__).parent / "shim"
_VARIABLES = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}


def environment(on: bool = True, own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment in which vLLM runs V2, with every Triton kernel in Triton's interpreter.

    All processes started in it, and theirs, inherit the mode. Asynchronous scheduling is on, as
    vLLM has it on a GPU, unless ``--no-async-scheduling`` is given.

    Args:
        on: False for vLLM's V1 and PyTorch, also where this process has the mode.
        own: what else is in it.
    """
    given = {name: value for name, value in own.items() if name not in _VARIABLES}
    before = own.get("PYTHONPATH", "").split(os.pathsep)
    path = [str(SHIM)] * on + [folder for folder in before if folder not in ("", str(SHIM))]
    return given | {"PYTHONPATH": os.pathsep.join(path)} | (_VARIABLES if on else {})


def is_on() -> bool:
    """Whether this process runs in such an environment."""
    return str(SHIM) in os.environ.get("PYTHONPATH", "").split(os.pathsep)
