"""The same server as a Ray Serve application: replicas behind Ray's proxies.

    serve run cdserve.ray_serve:app config=cdserve.yaml replicas=2

Every replica is an actor with the app and engines of its own, as `cdserve serve` makes them.
`cdserve.ray_serve.proxy` is what Ray's proxies need of it.
"""

import asyncio
import os
import shlex
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing import active_children
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from ray import serve
from ray.serve.config import RequestRouterConfig
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdserve.demo import DEMO_DIR
from cdserve.errors import ConfigError
from cdserve.ray_serve.disconnect import CancelledAsDisconnect
from cdserve.ray_serve.merged_metrics import merged

if TYPE_CHECKING:
    from cdserve.engine.aligned import AlignedEngine

NAME = "cdserve"
"""Of the deployment, as ``deployments`` in Serve's configuration file names it."""
_POLL = 0.005
"""Seconds between two looks whether the engine lives."""
_SCRAPE_SECONDS = 8
"""That replicas have to say their metrics in; Prometheus waits for 10."""
_CONSISTENT_HASH = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
_RAYS_OWN = {
    "host": None,
    "port": 8000,
    "uds": None,
    "root_path": None,
    "ssl_keyfile": None,
    "api_server_count": None,
}
"""vLLM's flags about its HTTP server, which is not there, and their defaults."""


def _words(value: object) -> object:
    return shlex.split(value) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
"""A list, or as on the command line one string that a shell would split."""


class Arguments(BaseModel):
    """What the application takes, from ``serve run`` or as ``args`` of a configuration file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Path = Field(default=DEMO_DIR / "cdserve.yaml", description="The settings' YAML file.")
    set: Words = Field(default=(), description="Settings over the file's, as key=value.")
    flags: Words = Field(default=(), description="vLLM's flags.")
    replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, ge=0, description="That a replica takes of Ray's.")
    gpus: float = Field(default=0, ge=0, description="That a replica takes of Ray's.")
    routing: Literal["least_loaded", "session"] = Field(
        default="least_loaded",
        description="To the replica with fewer requests of two; or to that of an x-session-id.",
    )


class Replica:
    """One server; ``serve.ingress`` makes it a deployment's class and gives it ``app``."""

    app: Starlette

    async def check_health(self) -> None:
        """Raises what vLLM does if an engine has died; Ray then replaces the replica."""
        await self.app.state.engine.check_health()

    async def metrics(self) -> tuple[str, str]:
        """The replica's id, and what ``/metrics`` says of it."""
        return serve.get_replica_context().replica_tag, generate_latest(REGISTRY).decode()


def app(arguments: Arguments) -> serve.Application:
    """Builds the application.

    What Serve's configuration file says of the deployment ``cdserve`` wins over what stands here.
    """
    absolute = arguments.model_copy(update={"config": arguments.config.resolve()})

    def ingress() -> Starlette:
        return replica(absolute)

    deployment = serve.deployment(
        serve.ingress(ingress)(Replica),
        name=NAME,
        num_replicas=arguments.replicas,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        # Admission is the server's own: it knows of candidates, of which Ray does not.
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=60,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=2,
        request_router_config=_router(arguments.routing),
    )
    application: serve.Application = deployment.bind()
    return application


def _router(routing: str) -> RequestRouterConfig:
    if routing == "session":
        return RequestRouterConfig(request_router_class=_CONSISTENT_HASH)
    return RequestRouterConfig()  # the less loaded of two


def replica(arguments: Arguments) -> Starlette:
    """The app of one replica, whose engines start and stop with its lifespan.

    Raises:
        ConfigError: the settings are wrong.
    """
    from cdserve.launch.application import Application
    from cdserve.launch.serve import running_app

    application = Application.build(arguments.config, arguments.set, arguments.flags)
    for name, default in _RAYS_OWN.items():
        if (found := getattr(application.args, name)) != default:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is {found}; under Ray Serve its proxies speak HTTP")

    @asynccontextmanager
    async def lifespan(outer: Starlette) -> AsyncIterator[None]:
        async with running_app(application) as (engine, inner):
            outer.state.engine = engine
            outer.mount("/", SilentOnceDead(CancelledAsDisconnect(inner), engine))
            stopping = threading.Event()
            threading.Thread(target=_end_with, args=(engine, stopping), daemon=True).start()
            try:
                yield
            finally:
                stopping.set()

    return Starlette(lifespan=lifespan, routes=[Route("/metrics", _metrics)])


class SilentOnceDead:
    """Middleware that begins no response once the engine has died.

    What it would say is that the engine is dead. The process is about to end, which the proxy sees;
    with nothing answered, it sends the request to another replica (`cdserve.ray_serve.proxy`).
    """

    def __init__(self, app: ASGIApp, engine: "AlignedEngine") -> None:
        self._app = app
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the app; a response that has begun goes on, with the error in it."""
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            if not begun and self._engine.errored:
                await asyncio.Event().wait()  # until the process ends
            begun = begun or message["type"] == "http.response.body"
            await send(message)

        await self._app(scope, receive, sent)


async def _metrics(_: Request) -> Response:
    """The metrics of all replicas: a request reaches only one, and not always the same."""
    deployment = serve.get_replica_context().deployment
    answers = await (
        serve.get_deployment_handle(deployment)
        .broadcast("metrics")
        .results_async(timeout_s=_SCRAPE_SECONDS, return_exceptions=True)
    )
    # A replica that has just died answers with an exception.
    expositions = dict(one for one in answers if not isinstance(one, BaseException))
    return Response(merged(expositions), media_type=CONTENT_TYPE_LATEST)


def _end_with(engine: "AlignedEngine", stopping: threading.Event) -> None:
    """Ends the process at once when the engine dies: Ray then sends the replica nothing more.

    A health check would fail it only after some seconds, with all requests until then; and the
    event loop is busy with the requests that have failed.
    """
    while not stopping.wait(_POLL):
        if engine.errored:
            engine.close()
            for child in active_children():
                child.kill()
            os._exit(1)
