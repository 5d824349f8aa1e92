"""The arithmetic of the IFBench benchmark, and what its reward reads; without its package."""

import instructions
import instructions_reward
import pytest

POOL = [[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_expected_best_of_n_of_the_whole_pool_takes_the_best_draw() -> None:
    curve = instructions.expected(POOL, 4)
    assert curve.share == pytest.approx([1.0, 0.0])
    assert curve.passed == pytest.approx([1.0, 0.0])


def test_expected_best_of_1_is_the_mean_of_the_pool() -> None:
    curve = instructions.expected(POOL, 1)
    assert curve.share == pytest.approx([0.375, 0.0])
    assert curve.passed == pytest.approx([0.25, 0.0])


def test_figures_compare_answers_to_the_same_prompts() -> None:
    plain = [instructions.Answer(0.5, 10, 10), instructions.Answer(0.0, 30, 30)]
    answers = [instructions.Answer(1.0, 20, 80), instructions.Answer(0.0, 20, 120)]
    figures = instructions.figures(answers, plain, POOL, 4)
    assert figures["pass_rate"][0] == 0.5
    assert figures["share"][0] == 0.5
    assert figures["pass_rate_minus_plain"][0] == 0.5
    assert figures["share_minus_plain"][0] == 0.25
    assert figures["pass_rate_minus_expected"] == pytest.approx([0.0, 0.0])
    assert figures["tokens"] == 20
    assert figures["tokens_drawn_per_token"] == 5


@pytest.mark.parametrize("text", ["Name a city.", "Two\nlines. "])
def test_user_turn_inverts_the_chat_template(text: str) -> None:
    system = "<|im_start|>system\nHelp.<|im_end|>\n"
    rendered = f"{system}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert instructions_reward.user_turn(rendered) == text
    assert instructions_reward.user_turn(text) == text


def test_loose_checks_drop_lines_and_asterisks() -> None:
    assert instructions_reward.variants("*a*\nb\nc") == [
        *("*a*\nb\nc", "b\nc", "*a*\nb", "b"),
        *("a\nb\nc", "b\nc", "a\nb", "b"),
    ]
