"""``make check`` and ``make test``: pytest in several processes at once, each with its own tests.

``python -m tests.parts check|test``; other arguments are pytest's, in every process. The first
part prints as it runs, the others when all have ended.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

TESTS = Path(__file__).parent
WIRE = TESTS / "wire"
"""Tests of the wire, whose server has no model."""
SLOW = [
    TESTS / path
    for path in (
        "benchmarks/test_gpu_check.py",
        "benchmarks/test_kernel_resources.py",
        "commands/test_interrupted_commands.py",
        "commands/test_missing_models.py",
        "commands/test_train.py",
        "demo/test_build.py",
        "docs/test_heads.py",
        "launch/test_interrupt.py",
        "launch/test_reward_models.py",
        "v2",
        "value_heads/kernels/test_interpreter.py",
        "wire/test_openapi.py",
        "wire/test_silent_streams.py",
        "worker/test_parent.py",
    )
]
"""Tests that build the demo, train heads, interpret kernels, run model runner V2, start processes
or wait for timers."""
OWN_SERVERS = [
    TESTS / path
    for path in (
        "demo/test_smollm2.py",
        "launch/test_process_reward_model.py",
        "server/test_admission.py",
        "server/test_dead_engines.py",
        "server/test_killed_server.py",
        "server/test_several.py",
        "server/test_shutdown.py",
        "server/test_without_settings.py",
        "training/test_rollouts.py",
        "worker/test_adapter.py",
    )
]
"""Slow tests that start and stop engines or servers of their own."""
SERVER = [
    TESTS / path
    for path in (
        "benchmarks/test_gpu_check.py",
        "benchmarks/test_load.py",
        "clients",
        "deploy/test_monitoring.py",
        "docs/test_blocks.py",
        "docs/test_reference.py",
        "examples",
        "playground",
        "server",
        "worker/test_confidence.py",
        "worker/test_token_stats.py",
        "worker/test_parity.py",
        "worker/test_tails.py",
    )
]
"""All files that have tests of the fixture ``server``."""
DEPLOY = [
    TESTS / path
    for path in (
        "deploy/test_nginx.py",
        "deploy/test_prometheus.py",
        "launch/test_http_reward.py",
        "ray_serve/test_deployment.py",
        "test_wheel.py",
    )
]
"""Tests of replicas, of the wheel, and of other programs next to a server."""
FILES = {
    "server": SERVER,
    "own_servers": [*OWN_SERVERS, TESTS / "server/test_laws.py", TESTS / "training/test_score.py"],
    "slow": [*SLOW, TESTS / "worker/test_parity.py"],
}
"""All files with tests of these markers: other files, a process of `make test` does not import."""
FIRST_HALF = [WIRE, *(TESTS / name for name in ("api", "engine", "scoring", "worker"))]
"""About half of `make check`, by processor time."""
ELSEWHERE = "(deploy or v2)"
"""Tests of other make targets."""
CHECKED = f"not (server or slow or own_servers or {ELSEWHERE})"
PARTS: dict[str, list[tuple[str, list[Path]]]] = {
    "check": [
        (f"first_half and {CHECKED}", []),
        (f"not first_half and {CHECKED}", []),
    ],
    # Processes that start servers wait much of the time; four fill two cores.
    "test": [
        (f"server and not {ELSEWHERE}", FILES["server"]),
        (f"own_servers and not {ELSEWHERE}", FILES["own_servers"]),
        (f"slow and not server and not {ELSEWHERE}", FILES["slow"]),
        (CHECKED, []),
    ],
}
"""Tests of each process: a marker expression, and the files that have such tests; none for any."""
NO_TESTS = 5
"""Exit status of pytest if it chose no test, as with a file in the arguments."""


def main(name: str, arguments: Sequence[str]) -> int:
    """Runs the parts; 1 if a test failed or none was chosen."""
    named = any(Path(argument.partition("::")[0]).exists() for argument in arguments)
    first, *rest = (
        [sys.executable, "-m", "pytest", "-m", markers, *([] if named else files), *arguments]
        for markers, files in PARTS[name]
    )
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in rest]
        running = [
            subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            for command, log in zip(rest, logs, strict=True)
        ]
        statuses = [subprocess.run(first, check=False).returncode]
        for process, log in zip(running, logs, strict=True):
            statuses.append(process.wait())
            log.seek(0)
            print(log.read(), flush=True)
    return 0 if 0 in statuses and set(statuses) <= {0, NO_TESTS} else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
