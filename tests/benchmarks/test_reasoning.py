"""The arithmetic of the reasoning benchmark, without its package and its server."""

import pytest
import reasoning

PASSED = {
    "one": [0.0, 1.0, 0.0, 1.0],
    "majority": [1.0, 1.0, 0.0, 1.0],
    "weighted": [1.0, 1.0, 1.0, 1.0],
}
DRAWN = {"one": [10, 30, 10, 30], "majority": [80] * 4, "weighted": [80] * 4}


def test_figures_are_rates_and_differences_on_the_same_questions() -> None:
    table = reasoning.figures(PASSED, DRAWN, ["gcd", "gcd", "sum", "sum"])
    assert table["one"]["pass_rate"][0] == 0.5
    assert table["one"]["tokens"] == 20
    assert table["one"]["by_task"] == {"gcd": 0.5, "sum": 0.5}
    assert table["weighted"]["minus_one"][0] == 0.5
    assert table["weighted"]["minus_majority"][0] == 0.25
    assert "minus_one" not in table["one"]


def test_bootstrap_interval_is_that_of_the_mean() -> None:
    mean, low, high = reasoning.interval([0.0, 1.0] * 200)
    assert mean == 0.5
    half = 1.96 * 0.5 / 400**0.5
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.1)
    assert reasoning.interval([1.0] * 5) == [1.0, 1.0, 1.0]


def test_right_answers_are_those_that_the_verifier_accepts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    questions = [reasoning.Question("gcd", 0, "of 4 and 6?"), reasoning.Question("gcd", 1, "of 3?")]
    answers = {
        "one": [reasoning.Answer("2", 5, ["2"]), reasoning.Answer(None, 5, [None])],
        "majority": [
            reasoning.Answer("4", 20, ["4", "2", "4"]),
            reasoning.Answer("2", 20, ["2", "2", None]),
        ],
    }

    def verified(request: dict[str, object]) -> list[bool]:
        assert request["answers"] == [["gcd", 0, "2"], ["gcd", 0, "4"], ["gcd", 1, "2"]]
        return [True, False, False]

    monkeypatch.setattr(reasoning, "in_environment", verified)
    passed, best = reasoning.check(answers, questions, 2)
    assert passed == {"one": [1.0, 0.0], "majority": [0.0, 0.0]}
    assert best == [1.0, 0.0]
