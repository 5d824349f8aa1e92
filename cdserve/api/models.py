"""Rejection of model ids that have the form of a preset's but name none."""

from typing import Any

from cdserve.api.server import AlignmentServer
from cdserve.errors import ModelError, safe_repr


async def check_preset(request: Any, server: AlignmentServer, state: Any) -> None:
    """Checks the model id of a request of any class.

    Args:
        request: the request.
        server: the caller's view of the server.
        state: the app's state, with vLLM's serving code.

    Raises:
        ModelError: the id is the base model's name, a colon and a name that is neither a preset nor
            a model or adapter of vLLM's. The message lists the presets.
    """
    if not server.is_unknown_preset(request.model):
        return
    rejection = await state.openai_serving_completion._check_model(request)  # may load an adapter
    if rejection is not None and rejection.error.code == 404:
        base = server.settings.model_name
        known = ", ".join(f"{base}:{name}" for name in server.presets)
        raise ModelError(
            f"model {safe_repr(request.model)} does not exist; {safe_repr(base)} has the presets "
            f"{known or 'none'}"
        )
