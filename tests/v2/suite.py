"""``make test-v2``: tests of behaviour, with model runner V2 and the kernels under all of them.

``python -m tests.v2.suite``; arguments are pytest's, and files among them replace the list here.
"""

import os
import sys
from pathlib import Path

from .mode import environment

TESTS = Path(__file__).parents[1]
FILES = [
    # Every kind of row, in process: against V1, and under emulated CUDA graphs.
    "v2",
    # Values, tilts, mixtures, budgets, confidences: against Transformers, and by their laws.
    "worker/test_confidence.py",
    "worker/test_parity.py",
    "worker/test_adapter.py",
    "server/test_tokenwise.py",
    "server/test_mixing.py",
    "server/test_budget.py",
    "server/test_laws.py",
    "server/test_rewards.py",
    "server/test_sampling.py",
    "server/test_first_tokens.py",
    "server/test_invariances.py",
    # Searches and routes.
    "server/test_chat.py",
    "server/test_batches.py",
    "server/test_search_methods.py",
    "server/test_grammars.py",
    # Clients that leave, failures, several processes.
    "server/test_leaving_scores.py",
    "server/test_nothing_lost.py",
    "server/test_faults.py",
    "server/test_several.py",
    "server/test_tensor_parallel.py",
]

LEFT_OUT = ["tests/server/test_laws.py::test_served_distribution_matches_the_enumerated_one["]
"""Prefixes of test ids: chi-squares of many thousand tokens each, hours in the interpreter."""


def main() -> None:
    given = sys.argv[1:]
    files = [] if any(Path(one.split("::")[0]).exists() for one in given) else FILES
    chosen = [str(TESTS / file) for file in files]
    left_out = [f"--deselect={test}" for test in LEFT_OUT]
    command = [sys.executable, "-m", "pytest", *chosen, *left_out, *given]
    os.execve(sys.executable, command, environment())


if __name__ == "__main__":
    main()
