"""The ``vllm.endpoint_plugins`` entry: puts our routes in the place of vLLM's of the same path."""

from argparse import Namespace
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State

from cdserve.errors import ConfigError


class AlignmentEndpoints:
    """Our routes."""

    name = "cdserve"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Adds the routes; vLLM puts them in the place of its own."""
        from cdserve.api.guard import guard
        from cdserve.api.routes import router

        guard(app)
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Checks that the server was started by ``cdserve serve``, which makes the state.

        Raises:
            ConfigError: vLLM was started without cdserve's engine.
        """
        if "cdserve" not in args:
            raise ConfigError("the routes need `cdserve serve`; they cannot work in `vllm serve`")
