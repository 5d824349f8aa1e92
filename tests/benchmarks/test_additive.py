"""The exact distributions of the additive benchmark."""

import math
from itertools import product

import additive
import additive_reward as grammar
import numpy as np
import pytest

LETTERS = [chr(ord(grammar.FIRST_LETTER) + i) for i in range(len(grammar.STATES))]
TABLE = grammar.table(-math.inf).double().softmax(-1).numpy()


@pytest.mark.parametrize("prefix", ["", *LETTERS])
def test_value_is_the_expected_value_of_the_next_token(prefix: str) -> None:
    last = LETTERS.index(prefix or LETTERS[0])
    following = [grammar.value("", prefix + letter) for letter in LETTERS]
    assert TABLE[last] @ following == pytest.approx(grammar.value("", prefix))


def test_sentence_sums_match_the_enumerated_sentences() -> None:
    sums = np.zeros(5)
    for sentence in product(range(len(LETTERS)), repeat=3):
        steps = zip((0, *sentence), sentence, strict=False)
        if chance := math.prod(TABLE[i, j] for i, j in steps):
            sums[sum(grammar.STATES[i][2] for i in sentence) + 2] += chance
    assert additive.sentence_sums() == pytest.approx(sums)
    variance = sums @ np.arange(-2, 3) ** 2
    assert variance == pytest.approx(grammar.SENTENCE_VARIANCE)


def test_best_of_matches_the_enumerated_maximum_of_two() -> None:
    sums = additive.text_sums(2)
    values = np.arange(-4, 5) / (grammar.SENTENCES * grammar.PHRASES)
    pairs = np.outer(sums, sums) * np.maximum.outer(values, values)
    assert additive.best_of(sums, [1, 2]) == pytest.approx([0.0, pairs.sum()])


@pytest.mark.parametrize(("n", "mean"), [(1, 0.0), (2, 0.56419), (4, 1.02938), (8, 1.42360)])
def test_normal_maximum_has_the_published_values(n: int, mean: float) -> None:
    assert additive.normal_maximum(n) == pytest.approx(mean, abs=1e-5)


def test_normal_n_of_four_blocks_of_four_is_31() -> None:
    assert additive.normal_n(2 * additive.normal_maximum(4)) == pytest.approx(31.2, abs=0.05)


def test_noisy_value_has_the_stated_correlation_among_blocks() -> None:
    blocks = grammar.NOISY_BLOCK / grammar.SENTENCE * grammar.SENTENCE_VARIANCE
    correlation = math.sqrt(blocks / (blocks + grammar.NOISE**2))
    assert correlation == pytest.approx(grammar.ACCURACY)
    noise = [
        grammar.noisy_value("", text) - grammar.value("", text)
        for text in map("".join, product(LETTERS, repeat=2))
    ]
    scale = grammar.NOISE / (grammar.SENTENCES * grammar.PHRASES)
    assert np.mean(noise) == pytest.approx(0, abs=0.2 * scale)
    assert np.std(noise) == pytest.approx(scale, rel=0.15)


def test_policy_that_draws_like_best_of_n_equals_that_n() -> None:
    curve = additive.best_of(additive.text_sums(4), range(1, 65))
    figures = additive.figures([additive.Answer(float(curve[7]), 1024, 1.2)] * 4, curve)
    assert figures["equals_best_of"] == pytest.approx(8)
    assert figures["equals_best_of_95"] == pytest.approx([8, 8])
    assert figures["reward"] == pytest.approx([curve[7], 0])
