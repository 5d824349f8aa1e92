"""Rewards and scores are floats, whatever they were computed in."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from cdserve.scoring import Objective, Response, Reward
from cdserve.scoring.reward import RewardOptions


class Fixed(Reward):
    """Gives what it is told to, whatever the responses are."""

    kind = "fixed"

    def __init__(self, value: Any) -> None:
        self._value = value

    async def score(self, responses: Sequence[Response]) -> list[Any]:
        if isinstance(self._value, Exception):
            raise self._value
        return [self._value] * len(responses)


def response() -> Response:
    return Response(prompt="Hi", text="Fine.", tokens=2, finished=True, values={})


@pytest.mark.parametrize("value", [1, True, np.float32(0.5), np.int64(3), Decimal("0.5")])
async def test_reward_of_any_numeric_type_becomes_a_float(value: Any) -> None:
    (score,) = await Objective({"own": 1}, {"own": Fixed(value)}).score([response()])
    assert (type(score.total), type(score.rewards["own"])) == (float, float)
    assert score.rewards == {"own": float(value)}


@pytest.mark.parametrize("on_failure", ["skip", "base"])
async def test_score_without_a_successful_reward_is_a_float(on_failure: Any) -> None:
    failing = Fixed(KeyError("x"))
    failing.options = RewardOptions(on_failure=on_failure)
    (score,) = await Objective({"own": 1.0}, {"own": failing}).score([response()])
    assert (type(score.total), score.total) == (float, 0.0)


async def test_score_of_zero_weights_is_a_float() -> None:
    (score,) = await Objective({"own": 0.0}, {"own": Fixed(2)}).score([response()])
    assert (type(score.total), score.total) == (float, 0.0)


async def test_score_of_an_empty_objective_is_a_float() -> None:
    (score,) = await Objective({}, {}).score([response()])
    assert (type(score.total), score.total) == (float, 0.0)
