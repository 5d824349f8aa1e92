"""Confidences of a response from those of its tokens, against their definitions."""

from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdserve.scoring import Response, token_sums
from cdserve.scoring.confidence import AGGREGATES, Confidence

TOKENS = st.lists(st.floats(-20, 20), min_size=1, max_size=30)


def response(*blocks: list[float]) -> Response:
    sums = token_sums([np.array(block) for block in blocks])
    return Response(
        prompt="",
        text="",
        tokens=len(sums) - 1,
        finished=False,
        values={},
        token_sums={"base.self_certainty": sums},
    )


def reward(window: int | None, aggregate: str) -> Confidence:
    return Confidence("base.self_certainty", window, aggregate)


@given(tokens=TOKENS, window=st.integers(1, 40), cut=st.integers(0, 30))
def test_windows_run_across_blocks(tokens: list[float], window: int, cut: int) -> None:
    width = min(window, len(tokens))
    means = [fmean(tokens[i : i + width]) for i in range(len(tokens) - width + 1)]
    expected = {
        "mean": fmean(means),
        "min": min(means),
        "tail": fmean(tokens[-width:]),
        "bottom_10": fmean(sorted(means)[: max(1, len(means) // 10)]),
    }
    blocks = response(tokens[:cut], tokens[cut:])
    found = {name: reward(window, name)(blocks) for name in AGGREGATES}
    assert found == pytest.approx(expected, abs=1e-9)


@given(tokens=TOKENS)
def test_confidence_without_a_window_is_the_mean_of_the_tokens(tokens: list[float]) -> None:
    assert reward(None, "mean")(response(tokens)) == pytest.approx(fmean(tokens), abs=1e-9)


def test_confidence_of_no_tokens_is_zero() -> None:
    assert reward(8, "min")(response()) == 0.0
