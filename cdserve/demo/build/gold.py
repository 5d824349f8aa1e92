"""Fits the ground truth: ``python -m cdserve.demo.build.gold``."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cdserve.demo.build.reviews import Review, read_reviews
from cdserve.demo.reward import GOLD_PATH, Classifier, Feature, log_odds, terms

_FEATURES = 12000
_LEAST_DOCUMENTS = 10
_RIDGE = 2e-6
_STEPS = 150
_RATE = 0.1
_LENGTHS = (32, 64, 128, 10_000)
"""Lengths, in words, at which the accuracy is reported."""


def main() -> None:
    """Fits the classifier, writes it, and prints its accuracy on held-out reviews."""
    reviews = read_reviews()
    classifier = fit(reviews.gold)
    save(classifier, GOLD_PATH)
    for length in _LENGTHS:
        print(
            f"first {length} words: accuracy {_accuracy(classifier, reviews.held_out, length):.3f}"
        )


def save(classifier: Classifier, path: Path) -> None:
    """Writes a classifier for ``load_classifier``."""
    features = {
        term: [feature.idf, feature.weight] for term, feature in classifier.features.items()
    }
    content = json.dumps({"bias": classifier.bias, "features": features}, separators=(",", ":"))
    path.write_text(content + "\n", encoding="utf-8")


def fit(reviews: Sequence[Review]) -> Classifier:
    """A logistic regression on the terms with the highest chi-square, with a ridge penalty."""
    documents = [Counter(terms(review.text)) for review in reviews]
    labels = torch.tensor([float(review.positive) for review in reviews])
    idf = _idf(documents, labels)
    names = list(idf)
    matrix = _tfidf(documents, idf)
    weight = torch.zeros(len(names), requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=_RATE)
    for _ in range(_STEPS):
        logits = matrix @ weight + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        (loss + _RIDGE * weight.square().sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Classifier(
        round(bias.item(), 4),
        {
            name: Feature(idf[name], round(value, 3))
            for name, value in zip(names, weight.tolist(), strict=True)
        },
    )


def _idf(documents: Sequence[Counter[str]], labels: Tensor) -> dict[str, float]:
    """Inverse document frequencies of the terms that separate the labels best."""
    frequency, positive = Counter[str](), Counter[str]()
    for document, label in zip(documents, labels.tolist(), strict=True):
        frequency.update(document.keys())
        if label:
            positive.update(document.keys())
    share = float(labels.mean())

    def chi_square(term: str) -> float:
        count = frequency[term]
        return (positive[term] - share * count) ** 2 / count

    frequent = [term for term, count in frequency.items() if count >= _LEAST_DOCUMENTS]
    best = sorted(frequent, key=lambda term: (-chi_square(term), term))[:_FEATURES]
    total = len(documents)
    return {term: round(1 + math.log(total / frequency[term]), 3) for term in sorted(best)}


def _tfidf(documents: Sequence[Counter[str]], idf: dict[str, float]) -> Tensor:
    """Normalised TF-IDF, sparse [documents, terms]."""
    columns = {term: column for column, term in enumerate(idf)}
    rows = []
    for document in documents:
        known = {
            columns[term]: (1 + math.log(n)) * idf[term]
            for term, n in document.items()
            if term in idf
        }
        norm = math.sqrt(sum(value * value for value in known.values())) or 1.0
        rows.append({column: value / norm for column, value in sorted(known.items())})
    starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    indices = torch.tensor([column for row in rows for column in row])
    values = torch.tensor([value for row in rows for value in row.values()])
    return torch.sparse_csr_tensor(starts, indices, values, (len(rows), len(idf)))


def _accuracy(classifier: Classifier, reviews: Sequence[Review], words: int) -> float:
    right = [
        (log_odds(" ".join(review.text.split()[:words]), classifier) > 0) == review.positive
        for review in reviews
    ]
    return sum(right) / len(right)


if __name__ == "__main__":
    main()
