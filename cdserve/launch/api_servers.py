"""Several API server processes on one engine; each serves all routes."""

import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from socket import socket
from typing import Any

import vllm.envs as envs
import zmq
from vllm.entrypoints.launchers.launcher import setup_server
from vllm.usage.usage_lib import UsageContext
from vllm.utils.system_utils import decorate_logs, set_process_title
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.utils import bind_engine_zmq_listeners, launch_core_engines
from vllm.v1.executor import Executor
from vllm.v1.metrics.prometheus import setup_multiprocess_prometheus
from vllm.v1.utils import APIServerProcessManager, wait_for_completion_or_failure

from cdserve import interrupts
from cdserve.engine.admission import CandidateCounters
from cdserve.engine.demand import Demand, shared_servers
from cdserve.engine.vllm import AsyncEngineArgs
from cdserve.errors import ConfigError, EngineError

_GRACE = 5.0
"""Seconds for API servers to end by themselves once the engine is dead."""
_LINGER = 1000
"""Milliseconds to deliver a message to API servers; one of them may have died."""
_LOADS = "api_server_loads"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiServer:
    """One of several API server processes, by what it shares with the others.

    Attributes:
        address, sock: where all of them listen.
        client: vLLM's configuration of a client of the engine.
        loads: open connections of each server, and this one's index: the least loaded accepts next.
        counters: candidates held by the requests of all servers.
        demand: this server's share of the slots.
    """

    address: str
    sock: socket
    client: Mapping[str, Any]
    loads: tuple[MutableSequence[int], int]
    counters: CandidateCounters
    demand: Demand


def listen(args: Namespace, *, reuse_port: bool) -> tuple[str, socket]:
    """Binds the server's socket, before anything is loaded.

    Returns:
        The address for the log, and the socket.

    Raises:
        ConfigError: the address is in use, or cannot be bound.
    """
    try:
        address, sock = setup_server(args, reuse_port=reuse_port)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        host = f"--host {args.host} " if args.host else ""
        flags = f"--uds {args.uds}" if args.uds else f"{host}--port {args.port}"
        raise ConfigError(f"{flags}: {reason or error}") from error
    return address, sock


def serve(
    args: Namespace,
    counters: CandidateCounters,
    target: Callable[[ApiServer, Any], None],
    source: Any,
) -> None:
    """Runs the engine and ``args.api_server_count`` API servers until told to stop.

    Args:
        args: vLLM's arguments.
        counters: candidates of all servers.
        target: runs an API server in its own process until told to stop.
        source: second argument of ``target``; both are pickled.

    Raises:
        ConfigError: a vLLM setting does not work with several API servers.
        EngineError: the engine or an API server died.
    """
    count: int = args.api_server_count
    if envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
        raise ConfigError(
            f"--api-server-count is {count}; VLLM_ALLOW_RUNTIME_LORA_UPDATING needs 1: an adapter "
            "would be loaded in only one of them"
        )
    setup_multiprocess_prometheus()
    address, sock = listen(args, reuse_port=True)
    signal.signal(signal.SIGTERM, _interrupt)
    interrupts.prepare_to_spawn()
    engine_args = AsyncEngineArgs.from_cli_args(args)
    engine_args._api_process_count, engine_args._api_process_rank = count, -1
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    listeners = bind_engine_zmq_listeners(config, count)
    with launch_core_engines(
        config,
        Executor.get_class(config),
        not engine_args.disable_log_stats,
        listeners.addresses,
    ) as engines:
        coordinator = engines.coordinator
        servers = APIServerProcessManager(
            listen_address=address,
            sock=sock,
            args=Namespace(
                target=target,
                source=source,
                counters=counters,
                shared=shared_servers(count),
                max_num_queued_reqs=args.max_num_queued_reqs,
            ),
            num_servers=count,
            input_listeners=listeners.inputs,
            output_listeners=listeners.outputs,
            target_server_fn=_api_server,
            stats_update_address=coordinator and coordinator.get_stats_publish_address(),
            tensor_queue=engines.tensor_queue,
        )
        # If one of them ends before the engine is up, the start ends too.
        engines.watched_frontend_processes = servers.processes
    ends: float | None = None
    signal.signal(signal.SIGINT, _interrupt)
    interrupts.release()
    try:
        wait_for_completion_or_failure(servers, engines.engine_manager, coordinator)
    except SystemExit:
        ends = time.monotonic() + config.shutdown_timeout
    except RuntimeError as error:
        # A killed engine sends nothing. The engine stalls soon after an API server is killed.
        _send(listeners.addresses.outputs, EngineCoreProc.ENGINE_CORE_DEAD)
        _wait(servers.processes, _GRACE)  # they fail their requests and exit
        raise EngineError(str(error)) from error
    finally:
        for each in filter(None, (servers, engines.engine_manager, coordinator)):
            each.shutdown(timeout=None if ends is None else max(0.0, ends - time.monotonic()))
        sock.close()


def _api_server(address: str, sock: socket, args: Namespace, client: Mapping[str, Any]) -> None:
    """Main function of an API server process."""
    set_process_title("APIServer", str(client["client_index"]))
    decorate_logs()
    server = ApiServer(
        address=address,
        sock=sock,
        client={name: one for name, one in client.items() if name != _LOADS},
        loads=(client[_LOADS], client["client_index"]),
        counters=args.counters,
        demand=Demand(args.shared, client["client_index"]),
    )
    args.target(server, args.source)


def _send(addresses: Sequence[str], message: bytes) -> None:
    """Sends API servers a message in place of the engine."""
    with zmq.Context() as context:
        for address in addresses:
            with context.socket(zmq.PUSH) as channel:
                channel.linger = _LINGER
                channel.connect(address)
                channel.send(message)


def _wait(processes: Sequence[BaseProcess], seconds: float) -> None:
    ends = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, ends - time.monotonic()))


def _interrupt(number: int, _: object) -> None:
    """Exits. Later signals are ignored, so that they do not interrupt the shutdown."""
    for one in _SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    sys.exit(128 + number)
