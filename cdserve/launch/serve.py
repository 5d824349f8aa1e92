"""Starts vLLM with the plugin in its worker, wraps the engine, and serves."""

import asyncio
import os
import signal
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import uvloop
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_and_serve, build_async_engine_client
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import setup_server, validate_api_server_args
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.platforms import current_platform
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.system_utils import decorate_logs

from cdserve.config import Settings
from cdserve.engine.admission import none_held
from cdserve.engine.aligned import AlignedEngine
from cdserve.engine.likelihoods import Likelihoods
from cdserve.engine.steering import Paths
from cdserve.engine.values import Values
from cdserve.engine.vllm import as_flags, check_version, use_one_process
from cdserve.errors import ConfigError, EngineError
from cdserve.launch import api_servers, worker_args
from cdserve.launch.api_servers import ApiServer
from cdserve.launch.heads import Heads
from cdserve.launch.members import check_tokenizers
from cdserve.launch.reward_models import RewardModels
from cdserve.observability.metrics import MEMBER_INFO, REWARD_INFO, TASKS
from cdserve.worker.parent import ENDS_WITH_PARENT

_DRAIN_SECONDS = 30
"""That requests have to end in after a SIGTERM, unless --shutdown-timeout says else."""
_TASKS_SECONDS = 0.5
"""Between two looks at how many tasks there are."""
_PLUGIN = "cdserve"
_PLUGIN_GROUPS = ("vllm.general_plugins", "vllm.platform_plugins", "vllm.io_processor_plugins")


def parse(settings: Settings, heads: Heads, flags: Sequence[str]) -> Namespace:
    """vLLM's own arguments: the settings' ``engine`` section, then the command line's flags.

    Raises:
        ConfigError: a flag is used that cdserve sets itself, or one it cannot work with.
    """
    check_version()
    check_tokenizers(settings)
    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="cdserve serve", add_help=False))
    parser.set_defaults(shutdown_timeout=_DRAIN_SECONDS)
    given = [*as_flags(settings.engine), *flags]
    args: Namespace = parser.parse_args([settings.model, *given])
    args.model = args.model_tag
    validate_parsed_serve_args(args)
    if settings.served_model_name is not None and args.served_model_name is None:
        args.served_model_name = [settings.served_model_name]
    _check_servers(args, settings)
    use_one_process(args)
    if current_platform.is_cpu() and args.max_num_batched_tokens is None:
        # On CPU, vLLM 0.32 dies of a prompt that has a seed and is computed in chunks.
        args.enable_chunked_prefill = bool(args.enable_chunked_prefill)
    args.cdserve_attached = bool(heads.values.paths or settings.members or settings.likelihoods)
    if args.cdserve_attached:
        worker_args.configure(args, settings, heads)
    return args


def _check_servers(args: Namespace, settings: Settings) -> None:
    count = args.api_server_count
    if count is None or count == 1:
        return
    if count < 1:
        raise ConfigError(f"--api-server-count is {count}; cdserve serves with at least 1")
    for name, reward in settings.rewards.items():
        if reward.kind == "reward_model":
            raise ConfigError(
                f"--api-server-count is {count}; the engine of reward model {name!r} belongs to "
                "one API server: serve with 1, or with replicas"
            )


def authenticate(args: Namespace, secrets: Sequence[str]) -> None:
    """Has vLLM ask for an API key, and accept these beside its own."""
    own = args.api_key or [os.environ.get("VLLM_API_KEY")]
    args.api_key = [*filter(None, own), *secrets] or None


def serve(
    args: Namespace,
    settings: Settings,
    heads: Heads,
    models: RewardModels,
    server: ApiServer | None = None,
) -> None:
    """Runs the server, or one of several API servers, until it is told to stop.

    Raises:
        EngineError: the engine died.

    Args:
        args: from ``parse``; the API reads what it needs off it too.
        settings: the operator's.
        heads: the value heads to attach.
        models: the reward models to serve beside.
        server: of one of several, which the engine runs apart from.
    """
    uvloop.run(_serve(args, settings, heads, models, server))


def serve_several(
    args: Namespace, settings: Settings, target: Callable[[ApiServer, Any], None], source: Any
) -> None:
    """Runs the engine and several API servers until told to stop; as ``api_servers.serve``."""
    _set_environment(args)
    if args.cdserve_attached:
        worker_args.set_environment(args)
    api_servers.serve(args, none_held(len(settings.keys), spawned=True), target, source)


@asynccontextmanager
async def running(
    args: Namespace,
    settings: Settings,
    heads: Heads,
    models: RewardModels,
    server: ApiServer | None = None,
) -> AsyncIterator[AlignedEngine]:
    """Starts the engine and those of the reward models; stops them at the end.

    Args:
        args: from ``parse``.
        settings: the operator's.
        heads: the value heads to attach.
        models: the reward models to serve beside.
        server: of one of several API servers: the engine that it is a client of runs already.
    """
    _set_environment(args)
    _show(settings)
    async with models.running():
        if args.cdserve_attached:  # only now: it is not for the reward models' processes
            worker_args.set_environment(args)
        client = server and server.client
        async with build_async_engine_client(args, client_config=client) as inner:
            values, paths = Values(inner, heads), Paths()
            likelihoods = Likelihoods(inner, settings.likelihoods)
            engine = AlignedEngine(inner, values, paths, likelihoods, models, settings, server)
            try:
                yield engine
            finally:
                engine.close()


async def application(engine: AlignedEngine, args: Namespace) -> Any:
    """The FastAPI app on a running engine, for a server that is not vLLM's own."""
    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    validate_api_server_args(args)
    tasks = await engine.get_supported_tasks()
    app = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    app.state.server = SimpleNamespace(should_exit=False)  # vLLM's handlers tell it to stop
    return app


async def _serve(
    args: Namespace,
    settings: Settings,
    heads: Heads,
    models: RewardModels,
    server: ApiServer | None,
) -> None:
    decorate_logs("APIServer", skip_if_decorated=True)
    for one in (signal.SIGINT, signal.SIGTERM):  # until uvicorn sets its own
        signal.signal(one, _interrupt)
    address, sock = (
        (server.address, server.sock) if server else setup_server(args, reuse_port=False)
    )
    async with running(args, settings, heads, models, server) as engine:
        loads = server and server.loads
        shutdown = await build_and_serve(engine, address, sock, args, loads)
        died = engine.errored and not engine.draining
    try:
        await shutdown
    finally:
        sock.close()
    if died:
        raise EngineError("the engine has died")


def _show(settings: Settings) -> None:
    """Sets the metrics that say what is served."""
    _count_tasks(asyncio.get_running_loop())
    for name, reward in settings.rewards.items():
        REWARD_INFO.labels(name, reward.kind).set(1)
    for name in settings.members:
        MEMBER_INFO.labels(name).set(1)


def _count_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Keeps the gauge; metrics of several processes cannot be asked for when they are read."""
    TASKS.set(len(asyncio.all_tasks(loop)))
    loop.call_later(_TASKS_SECONDS, _count_tasks, loop)


def _interrupt(number: int, _: object) -> None:
    """No KeyboardInterrupt: vLLM swallows one while its engine starts, and waits on."""
    sys.exit(128 + number)


def _set_environment(args: Namespace) -> None:
    # vLLM's processes are spawned: what they are to know stands in the environment.
    os.environ[ENDS_WITH_PARENT] = "1"
    if current_platform.is_cpu() and args.enforce_eager:
        # Else vLLM compiles some sampling code at the first request that needs it, for a minute.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    if "VLLM_PLUGINS" not in os.environ:
        # Endpoint plugins load only by name; with names given, all other groups need theirs too.
        installed = {point.name for group in _PLUGIN_GROUPS for point in entry_points(group=group)}
        os.environ["VLLM_PLUGINS"] = ",".join(sorted(installed | {_PLUGIN}))
    elif _PLUGIN not in os.environ["VLLM_PLUGINS"].split(","):
        os.environ["VLLM_PLUGINS"] += f",{_PLUGIN}"
