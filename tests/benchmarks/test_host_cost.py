"""What the host does in a step does not grow with its rows."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from triton.runtime.jit import JITFunction

from benchmarks.host_cost import KINDS, Batch, costs, heads


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with heads() as folder, patch.object(JITFunction, "run", lambda *_, **__: None):
        yield folder


def calls(kind: str, rows: int, folder: Path) -> int:
    """Functions that Python calls in a step."""
    batch = Batch(kind, rows, folder)
    try:
        batch.enter()
        batch.step()
        seen = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal seen
            seen += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            batch.step()
        finally:
            sys.setprofile(None)
        return seen
    finally:
        batch.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_calls_as_many_functions_for_many_rows_as_for_few(kind: str, folder: Path) -> None:
    assert calls(kind, 70, folder) == calls(kind, 250, folder)


def test_every_kind_is_measured() -> None:
    rows = costs([2, 5], rounds=1, steps=1)
    assert [row["kind"] for row in rows] == list(KINDS)
    assert all(row[n]["step"] > 0 for row in rows for n in ("2", "5"))
