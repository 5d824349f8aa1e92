"""``make check`` and ``make test``: pytest in several processes at once, each with its own tests.

``python -m tests.parts check|test``; other arguments are pytest's, in every process. The first
part prints as it runs, the others when all have ended.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack

ELSEWHERE = "(deploy or v2)"
"""Tests of other make targets."""
CHECKED = f"not (server or slow or own_servers or {ELSEWHERE})"
PARTS: dict[str, list[list[str]]] = {
    "check": [
        ["-m", f"first_half and {CHECKED}"],
        ["-m", f"not first_half and {CHECKED}"],
    ],
    # Processes that start servers wait much of the time; four fill two cores.
    "test": [
        ["-m", f"server and not {ELSEWHERE}"],
        ["-m", f"own_servers and not {ELSEWHERE}"],
        ["-m", f"slow and not server and not {ELSEWHERE}"],
        ["-m", CHECKED],
    ],
}
NO_TESTS = 5
"""Exit status of pytest if it chose no test, as with a file in the arguments."""


def main(name: str, arguments: Sequence[str]) -> int:
    """Runs the parts; 1 if a test failed or none was chosen."""
    first, *rest = ([sys.executable, "-m", "pytest", *part, *arguments] for part in PARTS[name])
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
