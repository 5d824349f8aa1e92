"""Registers the model wrapper in place of the served architecture; a vLLM general plugin."""

import os

from cdserve.worker.parent import watch_parent

ARCHITECTURE = "_CDSERVE_ARCHITECTURE"
"""Environment variable with the served model's architecture, as its config.json names it."""


def register() -> None:
    """Registers the wrapper under the architecture's name, and watches the parent process.

    vLLM calls this once in every process. The unchanged name keeps what vLLM ties to it: config
    overrides, tool parsers, quantisation maps. Does nothing without the environment variables.
    """
    watch_parent()
    architecture = os.environ.get(ARCHITECTURE)
    if architecture is None:
        return
    from vllm import ModelRegistry

    ModelRegistry.register_model(architecture, f"cdserve.worker.model:{architecture}")
