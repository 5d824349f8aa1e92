"""The demo's ground truth: log-odds that a text is positive, by a classifier no head learned from.

The classifier is a logistic regression on TF-IDF of words and pairs of words, fitted to human
labels of film reviews (``cdserve/demo/build/gold.py``). Standard library only.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

GOLD_PATH = Path(__file__).parent / "gold.json"
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


class Feature(NamedTuple):
    """A word or a pair of words: inverse document frequency and weight."""

    idf: float
    weight: float


class Classifier(NamedTuple):
    """The bias and the features of the logistic regression."""

    bias: float
    features: Mapping[str, Feature]


def sentiment_gold(prompt: str, response: str) -> float:
    """Log-odds that a response is positive; about 0 for a text that is neither."""
    return log_odds(response, _gold())


def log_odds(text: str, classifier: Classifier) -> float:
    """The bias plus the weights of a text's features, times their normalised TF-IDF."""
    counts = Counter(terms(text))
    tfidf = {
        term: (1 + math.log(count)) * classifier.features[term].idf
        for term, count in counts.items()
        if term in classifier.features
    }
    norm = math.sqrt(sum(value * value for value in tfidf.values())) or 1.0
    return classifier.bias + sum(
        value / norm * classifier.features[term].weight for term, value in tfidf.items()
    )


def terms(text: str) -> Iterator[str]:
    """Words of a text in lower case, and pairs of neighbouring words."""
    words = _WORD.findall(text.lower())
    yield from words
    yield from (f"{first} {second}" for first, second in pairwise(words))


def load_classifier(path: Path) -> Classifier:
    """Reads a classifier that ``cdserve.demo.build.gold.save`` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    features = {term: Feature(*numbers) for term, numbers in content["features"].items()}
    return Classifier(content["bias"], features)


@cache
def _gold() -> Classifier:
    return load_classifier(GOLD_PATH)
