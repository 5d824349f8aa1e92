"""Objectives: which rewards a policy may ask for, and their weighted sum."""

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from cdserve import config
from cdserve.decoders import BestOfNPolicy, BlockwiseCDPolicy
from cdserve.errors import PolicyError, ScoringError
from cdserve.scoring import Objective, Response, Reward, build, objective
from cdserve.scoring.programmatic import Python
from cdserve.scoring.reward import RewardOptions

REWARDS: Mapping[str, Reward] = {
    **build(
        {
            "polite": config.ValueHeadReward(kind="value_head", path="head"),
            "brevity": config.LengthReward(kind="length", target=4),
        }
    ),
    "gold": Python(lambda prompt, response: len(response)),
}


def best_of(rewards: dict[str, float] | None) -> BestOfNPolicy:
    return BestOfNPolicy(method="best_of_n", n=2, rewards=rewards)


def blockwise(rewards: dict[str, float] | None) -> BlockwiseCDPolicy:
    return BlockwiseCDPolicy(method="blockwise_cd", k=2, m=2, rewards=rewards)


def response(text: str = "", tokens: int = 4, polite: float = 0.0) -> Response:
    return Response(prompt="Hi", text=text, tokens=tokens, finished=True, values={"polite": polite})


def of(function: Callable[[str, str], Any]) -> Objective:
    return Objective({"own": 1.0}, {"own": Python(function)})


class TestChoice:
    def test_policy_without_rewards_uses_the_default(self) -> None:
        made = objective(best_of(None), REWARDS, "polite")
        assert made.weights == {"polite": 1.0}
        assert list(made.rewards) == ["polite"]

    def test_objective_has_exactly_the_requested_rewards(self) -> None:
        made = objective(best_of({"gold": 0.5, "brevity": 2}), REWARDS, "polite")
        assert made.weights == {"gold": 0.5, "brevity": 2.0}
        assert list(made.rewards) == ["gold", "brevity"]

    @pytest.mark.parametrize(
        ("rewards", "values", "text"),
        [
            ({"polite": 1}, True, False),
            ({"brevity": 1}, False, False),
            ({"gold": 1}, False, True),
            ({"gold": 1, "polite": 1}, True, True),
        ],
    )
    def test_objective_reads_what_its_rewards_read(
        self, rewards: dict[str, float], values: bool, text: bool
    ) -> None:
        made = objective(best_of(rewards), REWARDS, None)
        assert (made.reads_values, made.reads_text) == (values, text)


class TestRejected:
    def test_unknown_reward_is_rejected(self) -> None:
        with pytest.raises(PolicyError) as caught:
            objective(best_of({"polite": 1, "rude": 1}), REWARDS, "polite")
        assert caught.value.param == "alignment.rewards"
        assert "'rude'" in str(caught.value)
        assert "brevity, gold, polite" in str(caught.value)

    def test_huge_reward_name_is_shortened_in_the_message(self) -> None:
        with pytest.raises(PolicyError) as caught:
            objective(best_of({"x" * 1_000_000: 1}), REWARDS, "polite")
        size = len(str(caught.value))
        assert size < 1000

    def test_missing_rewards_are_rejected_without_a_default(self) -> None:
        with pytest.raises(PolicyError, match="no default among") as caught:
            objective(best_of(None), REWARDS, None)
        assert caught.value.param == "alignment.rewards"

    def test_rewards_are_rejected_by_a_server_without_rewards(self) -> None:
        with pytest.raises(PolicyError, match="this server has no rewards"):
            objective(best_of(None), {}, None)

    def test_prefix_method_rejects_a_reward_of_finished_responses(self) -> None:
        with pytest.raises(PolicyError) as caught:
            objective(blockwise({"polite": 1, "gold": 1}), REWARDS, None)
        assert caught.value.param == "alignment.rewards.gold"
        assert "'blockwise_cd' scores prefixes" in str(caught.value)

    def test_prefix_method_rejects_a_default_reward_of_finished_responses(self) -> None:
        with pytest.raises(PolicyError, match="finished responses only"):
            objective(blockwise(None), REWARDS, "gold")

    def test_best_of_n_accepts_a_reward_of_finished_responses(self) -> None:
        assert objective(best_of(None), REWARDS, "gold").reads_text


class TestScore:
    async def test_score_is_the_weighted_sum_with_its_parts(self) -> None:
        made = objective(best_of({"polite": 2, "brevity": -1, "gold": 0.5}), REWARDS, None)
        scores = await made.score([response("abc", 8, 0.25), response("", 4, -1.0)])
        assert [score.total for score in scores] == [2 * 0.25 + 1 + 1.5, -2]
        assert scores[0].rewards == {"polite": 0.25, "brevity": -1.0, "gold": 3.0}

    async def test_reward_of_weight_zero_is_still_reported(self) -> None:
        made = objective(best_of({"polite": 1, "brevity": 0}), REWARDS, None)
        (score,) = await made.score([response("", 8, 0.5)])
        assert (score.total, score.rewards) == (0.5, {"polite": 0.5, "brevity": -1.0})

    async def test_no_responses_have_no_scores(self) -> None:
        assert await objective(best_of(None), REWARDS, "polite").score([]) == []

    async def test_operators_function_does_not_block_the_event_loop(self) -> None:
        made = of(lambda *_: threading.get_ident())
        scores = await made.score([response(), response()])
        assert threading.get_ident() not in [score.total for score in scores]


class TestFailures:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    async def test_reward_that_is_not_finite_fails_the_request(self, value: float) -> None:
        with pytest.raises(ScoringError, match=f"reward 'own' is {value}"):
            await of(lambda *_: value).score([response()])

    async def test_engine_value_that_is_not_finite_fails_the_request(self) -> None:
        made = objective(best_of({"polite": 0}), REWARDS, None)
        with pytest.raises(ScoringError, match="reward 'polite' is nan"):
            await made.score([response(), response(polite=math.nan)])

    @pytest.mark.parametrize("value", [None, "high", [1]])
    async def test_reward_that_is_not_a_number_fails_the_request(self, value: object) -> None:
        with pytest.raises(ScoringError, match="reward 'own' failed"):
            await of(lambda *_: value).score([response()])

    async def test_exception_of_an_operators_function_fails_the_request(self) -> None:
        def function(prompt: str, response: str) -> float:
            raise KeyError("lexicon")

        with pytest.raises(ScoringError, match="reward 'own' failed with KeyError") as caught:
            await of(function).score([response()])
        assert "lexicon" not in str(caught.value)
        assert isinstance(caught.value.__cause__, KeyError)

    @pytest.mark.parametrize("error", [StopIteration(), SystemExit(3)])
    async def test_operators_function_cannot_end_the_server_or_iteration(self, error: Any) -> None:
        def function(prompt: str, response: str) -> float:
            raise error

        with pytest.raises(ScoringError, match=r"failed with (StopIteration|SystemExit)"):
            await of(function).score([response()])

    async def test_weighted_sum_that_is_not_finite_fails_the_request(self) -> None:
        huge = Python(lambda *_: 1e308)
        made = Objective({"one": 1.0, "two": 1.0}, {"one": huge, "two": huge})
        with pytest.raises(ScoringError, match="finite"):
            await made.score([response()])


class TestOptions:
    """What the operator declares of a reward: its scale, and what is done without it."""

    def broken(self, **options: Any) -> Python:
        reward = Python(lambda *_: 1 / 0)
        reward.options = RewardOptions(**options)
        return reward

    async def test_rewards_are_weighed_standardised_and_reported_raw(self) -> None:
        reward = Python(lambda *_: 7.0)
        reward.options = RewardOptions(mean=3.0, std=2.0)
        (score,) = await Objective({"own": 0.5}, {"own": reward}).score([response()])
        assert (score.total, score.rewards) == (1.0, {"own": 7.0})

    async def test_on_failure_skip_lets_the_other_rewards_decide(self) -> None:
        rewards = {"own": self.broken(on_failure="skip"), "brevity": REWARDS["brevity"]}
        scores = await Objective({"own": 5.0, "brevity": 1.0}, rewards).score(
            [response(tokens=8), response(tokens=4)]
        )
        assert [score.total for score in scores] == [-1.0, 0.0]
        assert [score.rewards for score in scores] == [{"brevity": -1.0}, {"brevity": 0.0}]
        assert {score.failed for score in scores} == {("own",)}

    async def test_on_failure_base_scores_all_candidates_zero(self) -> None:
        rewards = {"own": self.broken(on_failure="base"), "brevity": REWARDS["brevity"]}
        scores = await Objective({"own": 5.0, "brevity": 1.0}, rewards).score(
            [response(tokens=8), response(tokens=4)]
        )
        assert [score.total for score in scores] == [0.0, 0.0]
        assert scores[0].rewards == {"brevity": -1.0}

    async def test_on_failure_error_fails_the_request(self) -> None:
        with pytest.raises(ScoringError, match="reward 'own' failed with ZeroDivisionError"):
            await Objective({"own": 1.0}, {"own": self.broken()}).score([response()])

    @pytest.mark.parametrize("on_failure", ["error", "skip"])
    async def test_timeout_is_handled_as_a_failure(self, on_failure: Any) -> None:
        over = threading.Event()
        reward = Python(lambda *_: float(over.wait()))
        reward.options = RewardOptions(on_failure=on_failure, timeout=0.05)
        scoring = Objective({"own": 1.0}, {"own": reward}).score([response()])
        try:
            if on_failure == "error":
                with pytest.raises(ScoringError, match=r"took longer than its timeout of 0\.05 s"):
                    await scoring
            else:
                (score,) = await scoring
                assert score.failed == ("own",)
        finally:
            over.set()


@pytest.mark.parametrize("weight", [1e308, -1e7])
def test_reward_weight_out_of_range_is_rejected(weight: float) -> None:
    with pytest.raises(ValidationError, match="1000000"):
        best_of({"brevity": weight})


@pytest.mark.parametrize(
    ("options", "weights", "variance"),
    [
        ({}, {"a": 2.0}, None),
        ({"mean": 1.0, "std": 3.0}, {"a": 2.0}, 4.0),
        ({"mean": 1.0}, {"a": 2.0, "b": -1.0}, None),
        ({"mean": 1.0}, {"a": 2.0, "b": 0.0}, 4.0),
        ({"mean": 1.0}, {"b": 0.0}, None),
    ],
)
def test_score_variance_needs_statistics_of_every_weighted_reward(
    options: dict[str, float], weights: dict[str, float], variance: float | None
) -> None:
    a, b = (Python(lambda prompt, response: 0.0) for _ in range(2))
    a.options = RewardOptions(**options)
    assert Objective(weights, {"a": a, "b": b}).score_variance == variance
