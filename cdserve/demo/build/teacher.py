"""The reward of rollouts that teach the heads: probability that a text is positive.

It is a classifier like the ground truth, fitted to other reviews: those of the heads. A label for
every rollout stands for a human who reads it; the ground truth, which judges the result, has seen
neither the rollouts nor these reviews.
"""

import math
from functools import cache
from pathlib import Path

from cdserve.demo.build.gold import fit, save
from cdserve.demo.build.reviews import read_reviews
from cdserve.demo.reward import Classifier, load_classifier, log_odds
from cdserve.demo.wheel import cache_dir


def positive(prompt: str, response: str) -> float:
    """Probability that a response is positive, from 0 to 1."""
    return 1 / (1 + math.exp(-log_odds(response, _teacher())))


def fit_teacher() -> Path:
    """Fits the classifier, unless the user's cache has it; its path."""
    path = cache_dir() / "teacher.json"
    if not path.exists():
        save(fit(read_reviews().heads), path)
    return path


@cache
def _teacher() -> Classifier:
    return load_classifier(fit_teacher())
