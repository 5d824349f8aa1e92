"""The arithmetic of the length experiment."""

import math

import length
import numpy as np
import pytest
from length_reward import log_words

from cdserve.kl import best_of_n_bound


@pytest.mark.parametrize("n", [1.0, 2.0, 45.0, 1e6])
def test_n_at_kl_inverts_the_bound_of_best_of_n(n: float) -> None:
    assert length.n_at_kl(best_of_n_bound(n)) == pytest.approx(n, rel=1e-6)


@pytest.mark.parametrize(
    ("reward", "n"), [(-1.0, 1.0), (0.5, 2.0), (1.25, math.sqrt(12)), (1.5, 4.0), (1.6, math.inf)]
)
def test_equal_n_interpolates_in_the_logarithm_of_n(reward: float, n: float) -> None:
    assert length.equal_n(reward, np.array([0.0, 0.5, 1.0, 1.5])) == pytest.approx(n)


def test_policy_that_draws_like_best_of_n_equals_that_n() -> None:
    rng = np.random.default_rng(0)
    curves = np.sort(rng.normal(size=(40, 8)), axis=1)
    answers = [length.Answer(float(row[3]), 50, 200, best_of_n_bound(4)) for row in curves]
    found = length.figures(answers, curves, np.full(40, 50.0))
    assert found["equals_best_of"] == pytest.approx(4)
    assert found["equals_best_of_95"] == pytest.approx([4, 4])
    assert found["ceiling_best_of"] == pytest.approx(4)
    assert found["tokens_of_that_best_of_n_per_token_drawn"] == pytest.approx(1)


@pytest.mark.parametrize(("text", "words"), [("", 1), ("one", 1), (" two words. ", 2)])
def test_reward_is_the_logarithm_of_the_words(text: str, words: int) -> None:
    assert log_words("any", text) == pytest.approx(math.log(words / 1024))
