"""Starts the engine of an application and serves its API until told to stop."""

import asyncio
import gc
import os
import signal
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import entry_points
from types import SimpleNamespace

import uvloop
from fastapi import FastAPI
from vllm import envs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_and_serve, build_async_engine_client
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import validate_api_server_args
from vllm.platforms import current_platform
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.system_utils import decorate_logs

from cdserve import interrupts
from cdserve.config import Settings
from cdserve.engine.admission import Admission, new_counters
from cdserve.engine.aligned import AlignedEngine
from cdserve.engine.first_tokens import FirstTokenReader
from cdserve.engine.readers import PathKLReader, TokenStatsReader, ValueReader
from cdserve.engine.resources import EngineResources
from cdserve.engine.slots import Slots
from cdserve.engine.vllm import EngineClient
from cdserve.errors import ConfigError, EngineError
from cdserve.launch import api_servers, worker_args
from cdserve.launch.api_servers import ApiServer, listen
from cdserve.launch.application import Application, Source
from cdserve.observability.metrics import MEMBER_INFO, REWARD_INFO, TASKS
from cdserve.worker.parent import ENDS_WITH_PARENT

BuildEngine = Callable[..., AbstractAsyncContextManager[EngineClient]]
"""Starts an engine, as vLLM's ``build_async_engine_client``."""
_TASKS_SECONDS = 0.5
"""Seconds between two updates of the gauge of asyncio tasks."""
_PLUGIN = "cdserve"
_PLUGIN_GROUPS = ("vllm.general_plugins", "vllm.platform_plugins", "vllm.io_processor_plugins")


def serve(application: Application, build_engine: BuildEngine = build_async_engine_client) -> None:
    """Runs the server until a signal stops it.

    Args:
        build_engine: starts the engine of a single API server.

    Raises:
        ConfigError: the settings do not work with several API servers.
        EngineError: the engine or an API server died.
    """
    if (application.args.api_server_count or 1) == 1:
        uvloop.run(_serve(application, None, build_engine))
        return
    _set_environment(application.args)
    if application.has_worker:
        worker_args.set_environment(application.args)
    counters = new_counters(len(application.settings.keys), spawned=True)
    api_servers.serve(application.args, counters, _api_server, application.source)


def _api_server(server: ApiServer, source: Source) -> None:
    """Runs one of several API servers, in its own process."""
    try:
        uvloop.run(_serve(Application.build(*source), server))
    except (ConfigError, EngineError) as error:
        sys.exit(f"cdserve: {error}")


@asynccontextmanager
async def running_app(
    application: Application, build_engine: BuildEngine = build_async_engine_client
) -> AsyncIterator[tuple[AlignedEngine, FastAPI]]:
    """Starts the engines and the app for an HTTP server that is not vLLM's; stops them after."""
    async with _running(application, None, build_engine) as engine:
        app = await _app(engine, application.args)
        async with app.router.lifespan_context(app):
            yield engine, app


@asynccontextmanager
async def _running(
    application: Application, server: ApiServer | None, build_engine: BuildEngine
) -> AsyncIterator[AlignedEngine]:
    """Starts the reward models and the engine; stops them at the end.

    Args:
        server: one of several API servers, whose engine runs already; None if there is one.
        build_engine: starts the engine, or connects to it.
    """
    args = application.args
    _set_environment(args)
    _set_metrics(application.settings)
    async with application.models.running():
        if application.has_worker:  # only now: the processes of reward models must not see it
            worker_args.set_environment(args)
        client = server and server.client
        async with build_engine(args, client_config=client) as inner:
            engine = _aligned(application, inner, server)
            try:
                yield engine
            finally:
                engine.close()


def _aligned(
    application: Application, inner: EngineClient, server: ApiServer | None
) -> AlignedEngine:
    """Wraps vLLM's engine."""
    settings, heads = application.settings, application.heads
    sequences: int = inner.vllm_config.scheduler_config.max_num_seqs
    running = settings.admission.max_running or max(1, sequences * 3 // 4)
    resources = EngineResources(
        engine=inner,
        values=ValueReader(inner, heads.values.columns, heads.values.width),
        token_stats=TokenStatsReader(inner, settings.token_stats),
        path_kl=PathKLReader(),
        first_tokens=FirstTokenReader(),
        slots=Slots(running, server.demand if server else None),
    )
    admission = Admission(
        running + settings.admission.max_waiting,
        keys=list(settings.keys),
        counters=server.counters if server else new_counters(len(settings.keys)),
    )
    return AlignedEngine(
        resources, admission, application.models.check_health, settings.error_details
    )


async def _app(engine: AlignedEngine, args: Namespace) -> FastAPI:
    """The FastAPI app on a running engine, for an HTTP server other than vLLM's."""
    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    validate_api_server_args(args)
    tasks = await engine.get_supported_tasks()
    app: FastAPI = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    app.state.server = SimpleNamespace(should_exit=False)  # vLLM's handlers set should_exit
    return app


async def _serve(
    application: Application,
    server: ApiServer | None,
    build_engine: BuildEngine = build_async_engine_client,
) -> None:
    decorate_logs("APIServer", skip_if_decorated=True)
    args = application.args
    address, sock = (server.address, server.sock) if server else listen(args, reuse_port=False)
    signal.signal(signal.SIGTERM, interrupts.end)  # until vLLM sets its own handlers
    if server is None:  # one of several API servers is stopped by its parent
        interrupts.end_at_once()
        interrupts.prepare_to_spawn()
    async with _running(application, server, build_engine) as engine:
        interrupts.release()
        envs.enable_envs_cache()  # vLLM's statistics read a variable per token
        loads = server and server.loads
        shutdown = await build_and_serve(engine, address, sock, args, loads)
        died = engine.errored and not engine.draining
    try:
        await shutdown
    finally:
        sock.close()
        gc.unfreeze()  # vLLM freezes; at exit Triton would print its frozen objects as leaked
    if died:
        raise EngineError("the engine has died")


def _set_metrics(settings: Settings) -> None:
    """Sets the metrics that describe what is served."""
    _count_tasks(asyncio.get_running_loop())
    for name, reward in settings.rewards.items():
        REWARD_INFO.labels(name, reward.kind).set(1)
    for name in settings.members:
        MEMBER_INFO.labels(name).set(1)


def _count_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Updates the gauge; metrics of several processes cannot be computed when they are read."""
    TASKS.set(len(asyncio.all_tasks(loop)))
    loop.call_later(_TASKS_SECONDS, _count_tasks, loop)


def _set_environment(args: Namespace) -> None:
    # vLLM spawns its processes: they read these from the environment.
    os.environ[ENDS_WITH_PARENT] = "1"
    if current_platform.is_cpu() and args.enforce_eager:
        # Otherwise vLLM compiles sampling code at the first request that needs it, for a minute.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    if "VLLM_PLUGINS" not in os.environ:
        # Endpoint plugins load only by name; with names given, all other groups need theirs too.
        installed = {point.name for group in _PLUGIN_GROUPS for point in entry_points(group=group)}
        os.environ["VLLM_PLUGINS"] = ",".join(sorted(installed | {_PLUGIN}))
    elif _PLUGIN not in os.environ["VLLM_PLUGINS"].split(","):
        os.environ["VLLM_PLUGINS"] += f",{_PLUGIN}"
