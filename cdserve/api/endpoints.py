"""The ``vllm.endpoint_plugins`` entry: cdserve's routes, before vLLM's of the same path."""

import copy
from argparse import Namespace
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.datastructures import State

from cdserve.errors import ConfigError

_SAGEMAKER_PATH = "/invocations"
"""SageMaker's route. Its handler calls vLLM's directly, past policies and API keys."""


class AlignmentEndpoints:
    """Endpoint plugin with cdserve's routes."""

    name = "cdserve"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Adds the routes, which take precedence over vLLM's of the same path.

        Raises:
            ConfigError: vLLM was not started by ``cdserve serve``.
        """
        from cdserve.api import errors, playground
        from cdserve.api.body import BodyLimitMiddleware
        from cdserve.api.routes import router

        if "cdserve" not in app.state.args:
            raise ConfigError(
                "cdserve's routes need `cdserve serve`; `vllm serve` cannot serve them"
            )
        _remove_route(app, _SAGEMAKER_PATH)
        app.include_router(router)
        errors.install(app)
        settings = app.state.args.cdserve.default.settings
        if settings.playground:
            app.include_router(playground.router)
        app.add_middleware(BodyLimitMiddleware, limit=settings.admission.max_body_bytes)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Makes vLLM's Messages API raise the errors of a chat stream.

        Unchanged, it would parse such an error as a chunk and report an invalid chunk instead.
        """
        from cdserve.api.streams import raise_stream_errors

        serving = copy.copy(state.anthropic_serving_messages)
        serving.create_chat_completion = raise_stream_errors(serving.create_chat_completion)
        state.anthropic_serving_messages = serving


def _remove_route(app: FastAPI, path: str) -> None:
    for route in [r for r in app.routes if isinstance(r, APIRoute) and r.path == path]:
        app.router.routes.remove(route)
