"""What must not change a choice, through the served search."""

from typing import Any

import pytest
from openai import OpenAI

from .wire import complete

METHODS: dict[str, dict[str, Any]] = {
    "best_of_n": {"method": "best_of_n", "n": 8},
    "blockwise_cd": {"method": "blockwise_cd", "k": 4, "m": 8},
    "beams": {"method": "blockwise_cd", "k": 2, "m": 8, "beam_width": 3},
    "speculative_rejection": {"method": "speculative_rejection", "n": 8, "m": 8},
}
SEEDS = range(3)


def texts(client: OpenAI, policy: dict[str, Any], rewards: dict[str, float]) -> list[str]:
    sent = {**policy, "rewards": rewards}
    return [complete(client, sent, seed=s, max_tokens=24).choices[0].text for s in SEEDS]


@pytest.mark.parametrize("policy", METHODS.values(), ids=METHODS)
def test_constant_reward_changes_no_choice(client: OpenAI, policy: dict[str, Any]) -> None:
    alone = texts(client, policy, {"sentiment": 1.0})
    assert texts(client, policy, {"sentiment": 1.0, "constant": 7.5}) == alone


@pytest.mark.parametrize("policy", METHODS.values(), ids=METHODS)
def test_scaling_all_rewards_changes_no_choice(client: OpenAI, policy: dict[str, Any]) -> None:
    alone = texts(client, policy, {"sentiment": 1.0, "fluent": 0.05})
    assert texts(client, policy, {"sentiment": 4.0, "fluent": 0.2}) == alone
    assert texts(client, policy, {"sentiment": 1.0, "halved": 0.1}) == alone
