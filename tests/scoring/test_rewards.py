"""Rewards: what each makes of a finished response and of an unfinished one."""

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from cdserve import config
from cdserve.errors import ConfigError
from cdserve.scoring import HeadOutput, Response, build


def response(
    tokens: int = 0,
    *,
    finished: bool = True,
    text: str = "",
    values: Mapping[str, float] | None = None,
) -> Response:
    return Response(prompt="Hi", text=text, tokens=tokens, finished=finished, values=values or {})


def one(settings: config.Reward, head: HeadOutput | None = None) -> Any:
    """The reward that settings describe, under the name r."""
    return build({"r": settings}, {} if head is None else {"r": head})["r"]


def length(target: int, tolerance: int = 0) -> Any:
    return one(config.LengthReward(kind="length", target=target, tolerance=tolerance))


def python(callable: str, **fields: Any) -> Any:
    return one(config.PythonReward(kind="python", callable=callable, **fields))


def grumpy(prompt: str, response: str) -> float:
    """An operator's function."""
    return -len(prompt + response)


class TestLength:
    @pytest.mark.parametrize(
        ("tokens", "value"), [(8, 0), (10, -0.25), (16, -1), (24, -2), (6, -0.25), (0, -1)]
    )
    def test_length_of_a_finished_response_counts_both_ways(
        self, tokens: int, value: float
    ) -> None:
        assert length(8)(response(tokens)) == value

    @pytest.mark.parametrize(("tokens", "value"), [(0, 0), (6, 0), (8, 0), (10, -0.25), (16, -1)])
    def test_length_of_an_unfinished_response_counts_only_overshoot(
        self, tokens: int, value: float
    ) -> None:
        assert length(8)(response(tokens, finished=False)) == value

    @pytest.mark.parametrize(
        ("tokens", "value"), [(4, -0.25), (6, 0), (8, 0), (10, 0), (11, -0.125), (12, -0.25)]
    )
    def test_length_within_tolerance_is_zero(self, tokens: int, value: float) -> None:
        assert length(8, 2)(response(tokens)) == value

    def test_length_of_a_prefix_is_at_least_that_of_any_continuation(self) -> None:
        reward = length(8, 1)
        for tokens in range(30):
            best = max(reward(response(end)) for end in range(tokens, 40))
            assert reward(response(tokens, finished=False)) == best

    def test_length_scores_prefixes_without_text(self) -> None:
        assert length(8).prefixes
        assert not length(8).reads_text


class TestValueHead:
    def test_value_head_is_the_engines_value_under_its_name(self) -> None:
        head = HeadOutput(kind="soft", shift=0.5, scale=2.0)
        reward = one(config.ValueHeadReward(kind="value_head", path="head"), head)
        assert reward.scores == "soft"
        assert reward(response(values={"r": 0.25, "other": 3})) == 0.25
        assert reward.prefixes
        assert not reward.reads_text

    def test_value_head_may_score_finished_responses_only(self) -> None:
        head = HeadOutput(kind="mean", shift=0.0, scale=1.0, prefixes=False)
        assert not one(config.ValueHeadReward(kind="value_head", path="head"), head).prefixes


class TestPython:
    def test_python_reward_gets_prompt_and_response(self) -> None:
        reward = python("cdserve.demo.tiny.reward:sentiment_gold")
        assert reward(response(text="")) == 0
        assert not reward.prefixes
        assert reward.reads_text

    def test_python_reward_scores_prefixes_only_if_declared(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cdserve.demo.tiny.reward.sentiment_gold", grumpy)
        reward = python("cdserve.demo.tiny.reward:sentiment_gold", prefixes=True)
        assert reward.prefixes
        assert reward(response(finished=False, text="yo")) == -4

    def test_python_reward_becomes_a_float(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cdserve.demo.tiny.reward.sentiment_gold", grumpy)
        value = python("cdserve.demo.tiny.reward:sentiment_gold")(response(text="you"))
        assert (value, type(value)) == (-5, float)

    @pytest.mark.parametrize(
        "callable",
        ["no_such_module:f", "math:no_such_function", "math.no:f", "cdserve.demo.tiny.reward:_"],
    )
    def test_python_reward_rejects_a_callable_that_cannot_be_imported(self, callable: str) -> None:
        with pytest.raises(ConfigError, match=r"rewards\.r\.callable.*cannot be imported"):
            python(callable)

    def test_python_reward_rejects_a_name_that_is_not_callable(self) -> None:
        with pytest.raises(ConfigError, match=r"rewards\.r\.callable.*not callable"):
            python("math:pi")


class TestText:
    @pytest.mark.parametrize(("text", "value"), [("a 42", 1), ("42", 1), ("forty-two", 0), ("", 0)])
    def test_regex_is_one_if_the_pattern_matches(self, text: str, value: float) -> None:
        reward = one(config.RegexReward(kind="regex", pattern=r"\d+$"))
        assert reward(response(text=text)) == value
        assert reward.reads_text
        assert not reward.prefixes

    def test_regex_rejects_an_invalid_pattern(self) -> None:
        with pytest.raises(ValidationError, match="not a regular expression: unterminated"):
            config.RegexReward(kind="regex", pattern="[")

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ('{"a": [1, 2.5e3, null]}', 1),
            (' "a" ', 1),
            ("{'a': 1}", 0),
            ("NaN", 0),
            ("[" * 100_000, 0),
            ("", 0),
        ],
    )
    def test_json_valid_is_one_only_for_one_json_value(self, text: str, value: float) -> None:
        assert one(config.JsonValidReward(kind="json_valid"))(response(text=text)) == value


class TestEnsemble:
    OTHERS: Mapping[str, config.Reward] = {
        "short": config.LengthReward(kind="length", target=8),
        "polite": config.ValueHeadReward(kind="value_head", path="head", standardise=True),
        "json": config.JsonValidReward(kind="json_valid"),
    }
    HEADS: Mapping[str, HeadOutput] = {"polite": HeadOutput(kind="mean", shift=1.0, scale=2.0)}

    def ensemble(self, of: list[str], **settings: Any) -> Any:
        made = config.EnsembleReward(kind="ensemble", of=of, **settings)
        return build({"all": made, **self.OTHERS}, self.HEADS)["all"]

    @pytest.mark.parametrize(
        ("aggregate", "value"),
        [
            # short -1, polite (5 - 1) / 2 = 2, json 1; their mean 2/3, their spread sqrt(14/9)
            ("mean", 2 / 3),
            ("median", 1.0),
            ("min", -1.0),
            ({"lcb": 3.0}, 2 / 3 - 3 * (14 / 9) ** 0.5),
        ],
    )
    async def test_ensemble_aggregates_standardised_rewards(
        self, aggregate: Any, value: float
    ) -> None:
        reward = self.ensemble(["short", "polite", "json"], aggregate=aggregate)
        (found,) = await reward.score([response(16, text="1", values={"polite": 5.0})])
        assert found == pytest.approx(value)

    def test_ensemble_supports_prefixes_iff_all_members_do_and_unions_inputs(self) -> None:
        heads = self.ensemble(["short", "polite"])
        assert (heads.prefixes, heads.reads_text, heads.reads_values) == (True, False, True)
        mixed = self.ensemble(["polite", "json"])
        assert (mixed.prefixes, mixed.reads_text, mixed.reads_values) == (False, True, True)

    @pytest.mark.parametrize("of", [["short", "nobody"], ["short", "all"]])
    def test_ensemble_rejects_unknown_members(self, of: list[str]) -> None:
        known = "json, polite, short"
        with pytest.raises(ConfigError, match=rf"rewards\.all\.of names '{of[1]}'; .*{known}"):
            self.ensemble(of)
