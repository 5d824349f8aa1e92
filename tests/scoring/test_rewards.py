"""Rewards: what each makes of a finished response and of an unfinished one."""

from collections.abc import Mapping

import pytest

from cdserve import config
from cdserve.errors import ConfigError
from cdserve.scoring import Response, Reward, build


def response(
    tokens: int = 0,
    *,
    finished: bool = True,
    text: str = "",
    values: Mapping[str, float] | None = None,
) -> Response:
    return Response(prompt="Hi", text=text, tokens=tokens, finished=finished, values=values or {})


def length(target: int, tolerance: int = 0) -> Reward:
    settings = config.LengthReward(kind="length", target=target, tolerance=tolerance)
    return build("brevity", settings, None)


def python(callable: str) -> Reward:
    return build("gold", config.PythonReward(kind="python", callable=callable), None)


def grumpy(prompt: str, response: str) -> float:
    """An operator's function."""
    return -len(prompt + response)


class TestLength:
    @pytest.mark.parametrize(
        ("tokens", "value"), [(8, 0), (10, -0.25), (16, -1), (24, -2), (6, -0.25), (0, -1)]
    )
    def test_finished(self, tokens: int, value: float) -> None:
        assert length(8)(response(tokens)) == value

    @pytest.mark.parametrize(("tokens", "value"), [(0, 0), (6, 0), (8, 0), (10, -0.25), (16, -1)])
    def test_an_unfinished_one_can_still_grow(self, tokens: int, value: float) -> None:
        assert length(8)(response(tokens, finished=False)) == value

    @pytest.mark.parametrize(
        ("tokens", "value"), [(4, -0.25), (6, 0), (8, 0), (10, 0), (11, -0.125), (12, -0.25)]
    )
    def test_tolerance(self, tokens: int, value: float) -> None:
        assert length(8, 2)(response(tokens)) == value

    def test_an_unfinished_one_never_scores_below_what_it_can_become(self) -> None:
        reward = length(8, 1)
        for tokens in range(30):
            best = max(reward(response(end)) for end in range(tokens, 40))
            assert reward(response(tokens, finished=False)) == best

    def test_it_scores_prefixes_without_text(self) -> None:
        assert length(8).prefixes
        assert not length(8).reads_text


class TestValueHead:
    def test_it_is_the_engines_value_under_its_name(self) -> None:
        reward = build("polite", config.ValueHeadReward(kind="value_head", path="head"), "soft")
        assert reward(response(values={"polite": 0.25, "other": 3})) == 0.25
        assert reward.prefixes
        assert not reward.reads_text


class TestPython:
    def test_it_sees_prompt_and_response(self) -> None:
        reward = python("cdserve.demo.reward:sentiment_gold")
        assert reward(response(text="")) == 0
        assert not reward.prefixes
        assert reward.reads_text

    def test_its_value_becomes_a_float(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cdserve.demo.reward.sentiment_gold", grumpy)
        value = python("cdserve.demo.reward:sentiment_gold")(response(text="you"))
        assert (value, type(value)) == (-5, float)

    @pytest.mark.parametrize(
        "callable",
        ["no_such_module:f", "math:no_such_function", "math.no:f", "cdserve.demo.reward:_"],
    )
    def test_what_cannot_be_imported(self, callable: str) -> None:
        with pytest.raises(ConfigError, match=r"rewards\.gold\.callable.*cannot be imported"):
            python(callable)

    def test_what_cannot_be_called(self) -> None:
        with pytest.raises(ConfigError, match=r"rewards\.gold\.callable.*not callable"):
            python("math:pi")
