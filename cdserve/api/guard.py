"""Routes of vLLM's that cannot take a policy yet: they refuse the field instead of ignoring it.

SageMaker's route is taken away: it calls vLLM's own handlers, past policies and API keys.
"""

import functools
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute

from cdserve.errors import PolicyError
from cdserve.policy import FIELD

UNALIGNED = ("/v1/chat/completions/batch", "/v1/responses", "/v1/messages")
UNSERVED = ("/invocations",)


def guard(app: FastAPI) -> None:
    """Puts a guarded copy of each such route into the app, in the place of vLLM's."""
    for route in [r for r in app.routes if isinstance(r, APIRoute) and r.path in UNSERVED]:
        app.router.routes.remove(route)
    for route in [r for r in app.routes if isinstance(r, APIRoute) and r.path in UNALIGNED]:
        app.add_api_route(
            route.path,
            _guarded(route.endpoint, route.path),
            methods=sorted(route.methods or ()),
            dependencies=route.dependencies,
            responses=route.responses,
        )


def _guarded(endpoint: Callable[..., Any], path: str) -> Callable[..., Any]:
    @functools.wraps(endpoint)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        raw_request: Request = kwargs["raw_request"]
        if FIELD in await raw_request.json():
            raise PolicyError(
                f"{FIELD} is not supported by {path}; use /v1/chat/completions or /v1/completions",
                FIELD,
            )
        return await endpoint(*args, **kwargs)

    return guarded
