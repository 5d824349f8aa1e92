"""Alignment works: on held-out prompts both methods raise the demo's true reward."""

from typing import Any

import pytest

from .gold import assert_better, held_out, true_rewards
from .served import Served

POLICIES: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "best_of_n": {"method": "best_of_n", "n": 8},
    "blockwise_cd": {"method": "blockwise_cd", "k": 4, "m": 32},
}


@pytest.fixture(scope="module")
async def rewards(server: Served) -> dict[str, list[float]]:
    """The true reward of each prompt's response, by method."""
    return await true_rewards(server, held_out(48), POLICIES)


@pytest.mark.parametrize("method", ["best_of_n", "blockwise_cd"])
def test_searches_raise_the_true_reward(rewards: dict[str, list[float]], method: str) -> None:
    assert_better(rewards["none"], rewards[method])
