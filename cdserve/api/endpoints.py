"""The ``vllm.endpoint_plugins`` entry: puts our routes in the place of vLLM's of the same path."""

import copy
from argparse import Namespace
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.datastructures import State

from cdserve.errors import ConfigError

_PAST_POLICIES = "/invocations"
"""SageMaker's route, which calls vLLM's handlers past policies and API keys."""


class AlignmentEndpoints:
    """Our routes."""

    name = "cdserve"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Adds the routes; vLLM puts them in the place of its own.

        Raises:
            ConfigError: vLLM was started without cdserve's engine.
        """
        from cdserve.api import errors, playground
        from cdserve.api.body import BodyLimit
        from cdserve.api.routes import router

        if "cdserve" not in app.state.args:
            raise ConfigError("the routes need `cdserve serve`; they cannot work in `vllm serve`")
        _remove(app, _PAST_POLICIES)
        app.include_router(router)
        errors.install(app)
        settings = app.state.args.cdserve.everybody.settings
        if settings.playground:
            app.include_router(playground.router)
        app.add_middleware(BodyLimit, limit=settings.admission.max_body_bytes)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Has vLLM's Messages API tell an error in a stream; it would call it no chunk."""
        from cdserve.api.streams import raising

        serving = copy.copy(state.anthropic_serving_messages)
        serving.create_chat_completion = raising(serving.create_chat_completion)
        state.anthropic_serving_messages = serving


def _remove(app: FastAPI, path: str) -> None:
    for route in [r for r in app.routes if isinstance(r, APIRoute) and r.path == path]:
        app.router.routes.remove(route)
