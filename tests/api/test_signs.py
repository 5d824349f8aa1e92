"""Signs of reward weights: what requests, keys and presets may give."""

from typing import Any

import pytest

from cdserve.api.keys import Keys
from cdserve.api.server import AlignmentServer
from cdserve.config import Key, Settings
from cdserve.errors import PolicyError

REWARDS = {
    "safety": {"kind": "length", "target": 9},
    "cost": {"kind": "length", "target": 9, "sign": "negative"},
    "style": {"kind": "length", "target": 9, "sign": "any"},
}
TILT = {"method": "tokenwise_cd", "beta": 1.0}


def server(**settings: Any) -> AlignmentServer:
    sent = {"model": "m", "rewards": REWARDS, "default_reward": "safety", **settings}
    return AlignmentServer.build(Settings.model_validate(sent), {}, {"safety": 0, "cost": 1})


def best_of(**rewards: float) -> dict[str, Any]:
    return {"method": "best_of_n", "n": 2, "rewards": rewards}


@pytest.mark.parametrize("weights", [{"safety": 1}, {"cost": -1}, {"style": -1}, {"style": 2}])
def test_weight_of_an_allowed_sign_is_accepted(weights: dict[str, float]) -> None:
    context = server().resolve(best_of(**weights))
    assert context is not None
    assert context.objective.weights == weights


@pytest.mark.parametrize("weights", [{"safety": 0.0}, {"cost": 0.0}])
def test_weight_of_0_has_any_sign(weights: dict[str, float]) -> None:
    assert server().resolve(best_of(**weights)) is not None


@pytest.mark.parametrize(
    ("policy", "param", "words"),
    [
        (best_of(safety=-0.5), "alignment.rewards.safety", r"is -0\.5; .* of at least 0"),
        (best_of(style=1, cost=2), "alignment.rewards.cost", "is 2; .* at most 0: it is a cost"),
        ({**TILT, "rewards": {"safety": -1}}, "alignment.rewards.safety", "of at least 0"),
        (
            {
                **{"method": "blockwise_cd", "k": 2, "m": 4, "rewards": {"style": 1}},
                "final_rewards": {"safety": -1},
            },
            "alignment.final_rewards.safety",
            "of at least 0",
        ),
        (
            {**best_of(style=1), "proposal": {**TILT, "rewards": {"safety": -1}}},
            "alignment.proposal.rewards.safety",
            r"rewards\.safety\.sign",
        ),
    ],
)
def test_weight_of_another_sign_is_refused_with_its_field(
    policy: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(PolicyError, match=words) as caught:
        server().resolve(policy)
    assert (caught.value.param, caught.value.reason) == (param, "limit")


def test_presets_may_have_any_sign_and_clients_use_them() -> None:
    made = server(presets={"away": best_of(safety=-1.0)})
    context = made.resolve("away")
    assert context is not None
    assert context.objective.weights == {"safety": -1.0}


def test_limit_allows_negative_weights_for_all_or_for_one_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed = {"allow_negative_rewards": True}
    assert server(limits=allowed).resolve(best_of(safety=-1.0)) is not None
    with pytest.raises(PolicyError, match="a cost"):
        server(limits=allowed).resolve(best_of(cost=1.0))
    monkeypatch.setenv("RESEARCH_KEY", "sk-1")
    key = Key(api_key_env="RESEARCH_KEY", limits=allowed)
    keys = Keys.build(server(keys={"research": key}))
    assert keys.view("Bearer sk-1").resolve(best_of(safety=-1.0)) is not None
    with pytest.raises(PolicyError, match="at least 0"):
        keys.view(None).resolve(best_of(safety=-1.0))
    assert keys.view("Bearer sk-1").describe()["rewards"]["safety"]["sign"] == "any"


def test_description_has_the_sign_of_each_reward() -> None:
    rewards = server().describe()["rewards"]
    signs = {name: reward["sign"] for name, reward in rewards.items()}
    assert signs == {"safety": "positive", "cost": "negative", "style": "any"}


def test_cost_as_the_default_reward_is_refused_at_start() -> None:
    with pytest.raises(ValueError, match="default_reward is 'cost', whose sign is negative"):
        server(default_reward="cost")
