"""``kl_budget`` on served requests: long answers, every method that takes one, the operator's."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI

from cdserve import kl
from cdserve.api.server import AlignmentServer
from cdserve.config import Settings
from cdserve.errors import PolicyError

from .wire import complete

TOKENS = 192
LONG = {"max_tokens": TOKENS, "ignore_eos": True}
TILT = {"method": "tokenwise_cd", "beta": 0.15}
POLICIES: dict[str, dict[str, Any]] = {
    "blockwise": {"method": "blockwise_cd", "k": 4, "m": 16},
    "softmax": {"method": "blockwise_cd", "k": 8, "m": 16, "selection": {"softmax": 0.3}},
    "tokenwise": TILT,
    "mixing": {"method": "logit_mixing", "weights": {"base": 0.0, "tuned": 1.0}},
    "both": {"method": "blockwise_cd", "k": 4, "m": 32, "proposal": TILT},
}


@pytest.fixture(scope="module")
def free(client: OpenAI) -> dict[str, Any]:
    """What a long answer under each policy spends without a budget."""
    with ThreadPoolExecutor() as pool:
        answers = pool.map(lambda policy: complete(client, policy, **LONG), POLICIES.values())
        spent = [answer.alignment["kl"] for answer in answers]
    return dict(zip(POLICIES, spent, strict=True))


@pytest.mark.parametrize("budget", [0.5, 2.0])
@pytest.mark.parametrize("name", POLICIES)
def test_long_answer_stays_within_the_kl_budget(
    client: OpenAI, free: dict[str, Any], name: str, budget: float
) -> None:
    policy = POLICIES[name]
    assert free[name]["bound"] > budget
    assert "budget" not in free[name]
    answer = complete(client, {**policy, "kl_budget": budget}, **LONG)
    assert answer.usage.completion_tokens == TOKENS
    spent = answer.alignment["kl"]
    assert 0.3 * budget < spent["bound"] <= budget
    assert spent["estimate"] <= spent["bound"] + 1e-9
    assert spent["budget"] == budget
    limited = spent["limited"]
    assert (limited["decisions"] > 0) == (policy["method"] == "blockwise_cd")
    assert (limited["tokens"] > 0) == (name in ("tokenwise", "mixing", "both"))


def test_ample_budget_changes_nothing(client: OpenAI) -> None:
    for policy in POLICIES.values():
        free, held = (complete(client, one) for one in (policy, {**policy, "kl_budget": 1e3}))
        assert held.choices[0].text == free.choices[0].text
        assert held.alignment["kl"]["limited"] == {"decisions": 0, "tokens": 0}


def test_kl_budget_of_zero_is_the_base_model(client: OpenAI) -> None:
    plain = complete(client, {"method": "none"}).choices[0].text
    for policy in POLICIES.values():
        held = complete(client, {**policy, "kl_budget": 0})
        assert held.alignment["kl"]["bound"] == 0
        if "k" not in policy:  # a block has a seed of its own
            assert held.choices[0].text == plain


def test_kl_budget_holds_without_a_report(client: OpenAI) -> None:
    """Nothing else makes the worker measure the KL."""
    plain = complete(client, {"method": "none"}).choices[0].text
    for policy in POLICIES.values():
        if "k" not in policy:
            held = complete(client, {**policy, "kl_budget": 0, "report": "none"})
            assert held.choices[0].text == plain


def test_best_of_n_draws_the_most_that_the_kl_budget_allows(client: OpenAI) -> None:
    policy = {"method": "best_of_n", "n": 16, "kl_budget": 1.0, "report": "trace"}
    report = complete(client, policy).alignment
    assert len(report["trace"][0]["candidates"]) == kl.largest_n(1.0, 16) == 6
    assert report["kl"]["limited"] == {"decisions": 1, "tokens": 0}


def limited(most: float) -> AlignmentServer:
    rewards = {"brevity": {"kind": "length", "target": 40}}
    sent = {"model": "m", "rewards": rewards, "default_reward": "brevity"}
    presets = {"far": {"method": "best_of_n", "n": 64}}
    settings = Settings.model_validate(
        {**sent, "presets": presets, "limits": {"max_kl_budget": most}}
    )
    return AlignmentServer.build(settings, outputs={}, q_columns={})


class TestOperator:
    """``limits.max_kl_budget``."""

    @pytest.mark.parametrize(("sent", "budget"), [({}, 2.0), ({"kl_budget": 0.5}, 0.5)])
    def test_operator_budget_applies_unless_the_request_has_a_lower_one(
        self, sent: dict[str, Any], budget: float
    ) -> None:
        context = limited(2.0).resolve({"method": "best_of_n", "n": 8, **sent})
        assert context is not None
        assert context.policy.budget == budget

    @pytest.mark.parametrize("budget", [2.5, None])
    def test_budget_above_the_operators_is_refused(self, budget: float | None) -> None:
        with pytest.raises(PolicyError, match="this server accepts 0 to 2 nats") as error:
            limited(2.0).resolve({"method": "best_of_n", "n": 8, "kl_budget": budget})
        assert error.value.param == "alignment.kl_budget"

    def test_methods_without_a_budget_are_refused_under_an_operator_budget(self) -> None:
        with pytest.raises(PolicyError, match=r"does not support a KL budget.* at 2 nats") as error:
            limited(2.0).resolve({"method": "best_of_poisson", "mu": 1.0})
        assert error.value.param == "alignment.method"

    def test_plain_decoding_passes_under_an_operator_budget(self) -> None:
        assert limited(0.0).resolve({"method": "none"}) is None

    def test_presets_may_exceed_the_operator_budget(self) -> None:
        context = limited(2.0).resolve("far")
        assert context is not None
        assert context.policy.budget is None

    @pytest.mark.parametrize("method", ["unknown", None, ["best_of_n"]])
    def test_operator_budget_leaves_other_errors_unchanged(self, method: object) -> None:
        with pytest.raises(PolicyError, match=r"alignment\.method is"):
            limited(2.0).resolve({"method": method})
