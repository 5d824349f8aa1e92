"""Puts the wrapped model in the place of the served one; a ``vllm.general_plugins`` entry."""

import os

from cdserve.worker.parent import watch_parent

ARCHITECTURE = "_CDSERVE_ARCHITECTURE"
"""Environment variable: the served model's architecture, as its config.json names it."""


def register() -> None:
    """Registers the wrapper under the architecture's own name.

    vLLM calls this in every process, once: so it is where each begins to watch its parent. Under
    its own name the model keeps all that vLLM ties to the name (config overrides, tool parsers,
    quantisation maps). Without the environment variables nothing changes.
    """
    watch_parent()
    architecture = os.environ.get(ARCHITECTURE)
    if architecture is None:
        return
    from vllm import ModelRegistry

    ModelRegistry.register_model(architecture, f"cdserve.worker.model:{architecture}")
