"""Every kind of row on model runner V2 with the Triton kernels is as on V1 with PyTorch."""

import pytest

from .compare import TOLERANCES, differences
from .conftest import Running
from .kinds import HEADS, MEMBERS, SIZES

KINDS = {**HEADS, **MEMBERS}
DRAWN = [name for name, kind in KINDS.items() if kind.temperature]
"""Kinds of which V1 and V2 draw other tokens: they make their random numbers differently."""
RUNS = pytest.mark.parametrize("run", ["first", "cached"])


def test_v2_runs_with_kernels_and_asynchronous_scheduling(v1: Running, v2: Running) -> None:
    assert v2.made["engine"] == {
        "runner": "vllm.v1.worker.cpu.model_runner",
        "asynchronous": True,
        "kernels": True,
    }
    assert v1.made["engine"] == {
        "runner": "vllm.v1.worker.cpu_model_runner",
        "asynchronous": False,
        "kernels": False,
    }


@RUNS
@pytest.mark.parametrize("kind", [name for name in KINDS if name not in DRAWN])
def test_rows_match_on_both_runners(v1: Running, v2: Running, kind: str, run: str) -> None:
    assert differences(v1.made[run][kind], v2.made[run][kind]) == []


@pytest.mark.parametrize("kind", DRAWN)
def test_first_step_of_a_drawn_row_has_the_same_kl_on_both_runners(
    v1: Running, v2: Running, kind: str
) -> None:
    first = str(KINDS[kind].length + 1)
    ours, theirs = (one.made["first"][kind]["path_kl"][first] for one in (v2, v1))
    assert ours == pytest.approx(theirs, abs=TOLERANCES["path_kl"])


@pytest.mark.parametrize("kind", KINDS)
def test_row_behind_a_cached_prompt_matches(v2: Running, kind: str) -> None:
    assert differences(v2.made["first"][kind], v2.made["cached"][kind]) == []


def test_dummy_batch_after_a_step_writes_nothing(v2: Running) -> None:
    before, after = v2.made["dummy batch"]
    assert before["values of a whole prompt"]["values"].keys() == {str(n) for n in range(1, 41)}
    assert before["statistics of a text"]["token_stats"]
    assert before == after


@RUNS
@pytest.mark.parametrize("kind", KINDS)
def test_rows_under_piecewise_graphs_match_eager_rows(v2: Running, kind: str, run: str) -> None:
    assert differences(v2.made[run][kind], v2.made["graphs"]["PIECEWISE"][run][kind]) == []


def test_piecewise_graphs_of_base_and_members_are_captured_before_serving(v2: Running) -> None:
    counted = v2.made["graphs"]["PIECEWISE"]["counted"]
    assert counted["captured"] == 3 * len(SIZES)
    assert counted["while_serving"] == 0
    assert counted["replays"]["PIECEWISE"] > 0
    assert counted["replays"]["FULL"] == 0
