"""Permuting candidates changes no choice but among ties; constants and scales change none."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cdserve.decoders import Argmax, Beam, Candidate, Score, SelectionRule, WorstCase
from cdserve.decoders.speculative_rejection import DropFraction

SCORES = st.lists(st.integers(-50, 50), min_size=1, max_size=12)
RULES: st.SearchStrategy[SelectionRule] = st.sampled_from(
    [Argmax(), Beam(1), Beam(3), DropFraction(0.5), WorstCase(0.3)]
)
reproducible = settings(derandomize=True, deadline=None, max_examples=200)


def kept(select: SelectionRule, scores: list[float]) -> list[float]:
    """The scores kept, the best first."""
    made = [Score(s, {}, parts={"up": s, "down": -0.5 * s}) for s in scores]
    prefix = (Candidate(token_ids=(), finish_reason=None),)
    chosen = select.keep(select.rank(made), [prefix] * len(made))
    assert chosen is not None
    return [scores[i] for i in chosen]


@reproducible
@given(RULES, SCORES, st.randoms(use_true_random=False))
def test_permuting_candidates_keeps_the_same_scores(
    select: SelectionRule, scores: list[float], rng: random.Random
) -> None:
    permuted = list(scores)
    rng.shuffle(permuted)
    assert kept(select, permuted) == kept(select, scores)


@reproducible
@given(RULES.filter(lambda rule: type(rule) is not WorstCase), SCORES, st.integers(-1000, 1000))
def test_adding_a_constant_to_scores_keeps_the_same_candidates(
    select: SelectionRule, scores: list[float], constant: int
) -> None:
    shifted = kept(select, [score + constant for score in scores])
    assert shifted == [score + constant for score in kept(select, scores)]


@reproducible
@given(RULES.filter(lambda rule: type(rule) is not WorstCase), SCORES, st.sampled_from([0.25, 8]))
def test_scaling_scores_keeps_the_same_candidates(
    select: SelectionRule, scores: list[float], scale: float
) -> None:
    scaled = kept(select, [score * scale for score in scores])
    assert scaled == [score * scale for score in kept(select, scores)]
