"""Model ids that look like a preset's and name nothing."""

from typing import Any

from cdserve.api.server import AlignmentServer
from cdserve.errors import ModelError, safe_repr


async def check_preset(request: Any, server: AlignmentServer, state: Any) -> None:
    """Checks the model id of a request of any class.

    Args:
        server: what it is to whoever sends the request.
        state: the app's, which has vLLM's serving code.

    Raises:
        ModelError: the id begins with the base model's name and a colon, but names no preset, and
            no model or adapter that vLLM has. The message lists the presets.
    """
    if not server.lacks(request.model):
        return
    refused = await state.openai_serving_completion._check_model(request)  # loads adapters, too
    if refused is not None and refused.error.code == 404:
        base = server.settings.model_name
        known = ", ".join(f"{base}:{name}" for name in server.presets)
        raise ModelError(
            f"model {safe_repr(request.model)} does not exist: it is no preset of "
            f"{safe_repr(base)}, which has {known or 'none'}"
        )
