"""cdserve in vLLM's processes: a vLLM general plugin."""

import os

from cdserve.worker.parent import ENDS_WITH_PARENT, watch_parent

ARCHITECTURE = "_CDSERVE_ARCHITECTURE"
"""Environment variable with the served model's architecture, as its config.json names it."""


def register() -> None:
    """Registers the model wrapper, extends vLLM's grammars, and watches the parent process.

    vLLM calls this once in every process. The wrapper is registered under the architecture's
    unchanged name, which keeps what vLLM ties to it: config overrides, tool parsers, quantisation
    maps. Does nothing without the environment variables.
    """
    watch_parent()
    if ENDS_WITH_PARENT in os.environ:
        from cdserve.worker import grammars

        grammars.install()
    architecture = os.environ.get(ARCHITECTURE)
    if architecture is None:
        return
    from vllm import ModelRegistry

    ModelRegistry.register_model(architecture, f"cdserve.worker.model:{architecture}")
