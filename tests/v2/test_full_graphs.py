"""Rows of a server without members under CUDA graphs of the whole forward pass."""

import pytest

from .compare import differences
from .conftest import Running
from .kinds import HEADS

MODES = ["FULL_AND_PIECEWISE", "FULL_DECODE_ONLY"]
SHORT = [name for name, kind in HEADS.items() if kind.length <= 40]
pytestmark = pytest.mark.v2


@pytest.mark.parametrize("run", ["first", "cached"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", HEADS)
def test_rows_under_full_graphs_match_eager_rows(
    full: Running, kind: str, mode: str, run: str
) -> None:
    assert differences(full.made[run][kind], full.made["graphs"][mode][run][kind]) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", SHORT)
def test_prompt_computed_token_by_token_matches_eager(full: Running, kind: str, mode: str) -> None:
    by_the_token = full.made["graphs"][mode]["by the token"][kind]
    assert differences(full.made["first"][kind], by_the_token) == []


@pytest.mark.parametrize("mode", MODES)
def test_no_graph_is_captured_while_serving(full: Running, mode: str) -> None:
    counted = full.made["graphs"][mode]["counted"]
    assert counted["captured"] > 0
    assert counted["while_serving"] == 0
    assert counted["replays"]["FULL"] > 0
