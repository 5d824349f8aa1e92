"""The server as a Ray Serve application: replicas behind Ray's HTTP proxies.

    serve run cdserve.ray_serve:app config=cdserve.yaml replicas=2

Every replica is an actor with its own app and engines, as under ``cdserve serve``.
``cdserve.ray_serve.proxy`` is the middleware for Ray's proxies.
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

from cdserve import demo
from cdserve.errors import ConfigError
from cdserve.ray_serve.disconnect import CancelledAsDisconnect
from cdserve.ray_serve.merged_metrics import merged

if TYPE_CHECKING:
    from cdserve.engine.aligned import AlignedEngine

NAME = "cdserve"
"""Name of the deployment under ``deployments`` in Ray Serve's configuration file."""
_POLL = 0.005
"""Interval of the check that the engine is alive, in seconds."""
_SCRAPE_SECONDS = 8
"""Timeout for the metrics of all replicas; Prometheus times out after 10 seconds."""
_CONSISTENT_HASH = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
_HTTP_SERVER_DEFAULTS = {
    "host": None,
    "port": 8000,
    "uds": None,
    "root_path": None,
    "ssl_keyfile": None,
    "api_server_count": None,
}
"""Defaults of vLLM's flags for its HTTP server, which does not run under Ray Serve."""


def _words(value: object) -> object:
    return shlex.split(value) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
"""A list of words, or one string that is split like a shell command."""


class Arguments(BaseModel):
    """Arguments of the application, from ``serve run`` or ``args`` in a configuration file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Path | None = Field(default=None, description="YAML settings file.")
    demo: Literal["smollm2", "tiny"] = Field(
        default="smollm2", description="Demo to serve without a settings file."
    )
    set: Words = Field(default=(), description="Settings that override the file, as key=value.")
    flags: Words = Field(default=(), description="Flags passed to vLLM.")
    replicas: int = Field(default=1, ge=1, description="Number of replicas.")
    cpus: float = Field(default=1, ge=0, description="Ray CPUs per replica.")
    gpus: float = Field(default=0, ge=0, description="Ray GPUs per replica.")
    routing: Literal["least_loaded", "session"] = Field(
        default="least_loaded",
        description="least_loaded: the less loaded of two random replicas; session: a fixed "
        "replica per x-session-id header.",
    )


class Replica:
    """One server; ``serve.ingress`` turns the class into a deployment's and sets ``app``."""

    app: Starlette

    async def check_health(self) -> None:
        """Raises vLLM's error if an engine has died; Ray then replaces the replica."""
        await self.app.state.engine.check_health()

    async def metrics(self) -> tuple[str, str]:
        """The replica's id and its metrics in Prometheus' text format."""
        return serve.get_replica_context().replica_tag, generate_latest(REGISTRY).decode()


def app(arguments: Arguments) -> serve.Application:
    """Builds the application.

    Options of the deployment ``cdserve`` in Ray Serve's configuration file take precedence.
    """
    config = arguments.config and arguments.config.resolve()
    absolute = arguments.model_copy(update={"config": config})

    def ingress() -> Starlette:
        return replica(absolute)

    deployment = serve.deployment(
        serve.ingress(ingress)(Replica),
        name=NAME,
        num_replicas=arguments.replicas,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        # The server does admission control itself: it counts candidates, Ray counts requests.
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
    return RequestRouterConfig()  # the less loaded of two random replicas


def replica(arguments: Arguments) -> Starlette:
    """The app of one replica; its engines start and stop with the app's lifespan.

    Raises:
        ConfigError: the settings are wrong, or the demo's model cannot be fetched.
    """
    from cdserve.launch.application import Application
    from cdserve.launch.serve import running_app

    config, changes = (
        demo.DemoSettings(arguments.config, ())
        if arguments.config
        else demo.settings(arguments.demo)
    )
    application = Application.build(config, [*changes, *arguments.set], arguments.flags)
    for name, default in _HTTP_SERVER_DEFAULTS.items():
        if (value := getattr(application.args, name)) != default:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{flag} is {value}; it is not supported under Ray Serve, whose proxies serve HTTP"
            )

    @asynccontextmanager
    async def lifespan(outer: Starlette) -> AsyncIterator[None]:
        async with running_app(application) as (engine, inner):
            outer.state.engine = engine
            outer.mount("/", SilentAfterEngineDeath(CancelledAsDisconnect(inner), engine))
            stopping = threading.Event()
            threading.Thread(target=_exit_with, args=(engine, stopping), daemon=True).start()
            try:
                yield
            finally:
                stopping.set()

    return Starlette(lifespan=lifespan, routes=[Route("/metrics", _metrics)])


class SilentAfterEngineDeath:
    """Middleware that starts no response after the engine has died.

    Any response would be an error. The process is about to exit; if no response has started, the
    proxy sends the request to another replica (``cdserve.ray_serve.proxy``).
    """

    def __init__(self, app: ASGIApp, engine: "AlignedEngine") -> None:
        self._app = app
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the app; a response that has started continues, with the error in it."""
        started = False

        async def send_if_alive(message: Message) -> None:
            nonlocal started
            if not started and self._engine.errored:
                await asyncio.Event().wait()  # until the process exits
            started = started or message["type"] == "http.response.body"
            await send(message)

        await self._app(scope, receive, send_if_alive)


async def _metrics(_: Request) -> Response:
    """The merged metrics of all replicas, since a scrape reaches an arbitrary one."""
    deployment = serve.get_replica_context().deployment
    answers = await (
        serve.get_deployment_handle(deployment)
        .broadcast("metrics")
        .results_async(timeout_s=_SCRAPE_SECONDS, return_exceptions=True)
    )
    # A replica that has just died gives an exception.
    expositions = dict(answer for answer in answers if not isinstance(answer, BaseException))
    return Response(merged(expositions), media_type=CONTENT_TYPE_LATEST)


def _exit_with(engine: "AlignedEngine", stopping: threading.Event) -> None:
    """Exits the process as soon as the engine dies, so that Ray sends it no more requests.

    A health check would take seconds, and all requests until then would fail. A thread does this
    because the event loop is busy with the failed requests.
    """
    while not stopping.wait(_POLL):
        if engine.errored:
            engine.close()
            for child in active_children():
                child.kill()
            os._exit(1)
