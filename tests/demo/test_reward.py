import random
import statistics
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdserve.demo.tiny.build.grammar import Review, write_review
from cdserve.demo.tiny.build.subjects import films, products
from cdserve.demo.tiny.lexicon import ADJECTIVES, MODIFIERS, PHRASES
from cdserve.demo.tiny.reward import modified, sentiment, sentiment_gold, valences


@pytest.fixture(scope="module")
def reviews() -> list[Review]:
    rng = random.Random(0)
    subjects = films(held_out=False) + products(held_out=False)
    return [write_review(rng, rng.choice(subjects)) for _ in range(1500)]


def test_reward_equals_the_sentiment_of_the_grammar(reviews: list[Review]) -> None:
    for review in reviews:
        assert valences(review.text) == pytest.approx(review.valences), review.text
        assert sentiment(review.text) == pytest.approx(review.sentiment)


def test_rewards_are_spread_and_rarely_tie(reviews: list[Review]) -> None:
    rewards = [sentiment(review.text) for review in reviews]
    assert min(rewards) < -0.7
    assert max(rewards) > 0.7
    assert abs(statistics.mean(rewards)) < 0.06
    assert len({round(reward, 6) for reward in rewards}) > 0.6 * len(rewards)


def test_sentiment_length_and_manners_are_independent(reviews: list[Review]) -> None:
    rewards = [review.sentiment for review in reviews]
    words = [len(review.text.split()) for review in reviews]
    assert abs(statistics.correlation(rewards, words)) < 0.06
    assert min(words) >= 10
    assert max(words) <= 140
    polite = [review.sentiment for review in reviews if review.manners == "polite"]
    blunt = [review.sentiment for review in reviews if review.manners == "blunt"]
    assert abs(statistics.mean(polite) - statistics.mean(blunt)) < 0.08


def test_mixed_reviews_are_common(reviews: list[Review]) -> None:
    mixed = [min(review.valences) < 0 < max(review.valences) for review in reviews]
    assert statistics.mean(mixed) > 0.4


def test_text_without_phrases_has_reward_zero() -> None:
    assert sentiment("") == 0.0
    assert sentiment("The lights were low.") == 0.0


def test_reward_is_the_mean_valence_of_phrases() -> None:
    text = "The plot is superb. In short, I expected more."
    assert valences(text) == [0.93, -0.43]
    assert sentiment(text) == pytest.approx(0.25)


def test_modifier_scales_the_valence_of_its_adjective() -> None:
    assert sentiment("rather dull") == pytest.approx(0.8 * -0.56)
    assert sentiment("very awful") == -1.0
    assert modified("a little", "good") == pytest.approx(0.55 * 0.48)


def test_reward_ignores_case_and_line_breaks() -> None:
    assert sentiment("A LITTLE\n  Dull") == sentiment("a little dull") != 0


def test_reward_counts_whole_words_only() -> None:
    assert sentiment("goodness, dullness, weakly") == 0.0


def test_reward_of_a_growing_text_changes_only_at_complete_phrases() -> None:
    text = "The plot kept me guessing until the very end. The cast is poor"
    rewards = [sentiment(text[:end]) for end in range(len(text) + 1)]
    assert sorted(set(rewards)) == pytest.approx([0.0, (0.79 - 0.64) / 2, 0.79])


def test_gold_reward_ignores_the_prompt() -> None:
    assert sentiment_gold("An awful, dreadful film:", "It is good.") == 0.48


def test_valences_stay_in_range_and_no_phrase_hides_another() -> None:
    assert all(-1 <= valence <= 1 for valence in (*PHRASES.values(), *ADJECTIVES.values()))
    for phrase, valence in PHRASES.items():
        assert valences(phrase) == [valence]
    for adjective in ADJECTIVES:
        for modifier in MODIFIERS:
            assert valences(f"{modifier} {adjective}") == [modified(modifier, adjective)]


@given(st.text())
def test_reward_of_any_text_is_in_range(text: str) -> None:
    assert -1 <= sentiment(text) <= 1


def test_importing_the_reward_loads_no_heavy_package() -> None:
    heavy = ("torch", "transformers", "tokenizers", "numpy", "vllm", "pydantic")
    code = (
        f"import sys, cdserve.demo.tiny.reward; sys.exit(bool(set({heavy!r}) & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
