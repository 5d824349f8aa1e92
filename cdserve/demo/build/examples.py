"""Training examples of the heads: beginnings of labelled reviews, as completions and as chats."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cdserve.demo.build.reviews import Review

_OPENING = 5
"""Words of a review that are the prompt of a completion."""
_WORDS = 80
"""Words of a response."""
_INSTRUCTIONS = (
    "Write a short review of a film that you have seen.",
    "Tell me what you thought of the film.",
    "Write a film review.",
    "You have just left the cinema. How was it?",
    "Give your honest opinion of the film in a few sentences.",
    "Review the film for our newspaper.",
)


def write_examples(reviews: Sequence[Review], path: Path) -> None:
    """Writes one row per review, half of them completions and half chats.

    A row is ``{"prompt", "completion", "label", "finish_reason": "length"}``; the prompt is a text
    or the messages of a chat.
    """
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for row in _rows(reviews, generator):
            file.write(json.dumps(row) + "\n")


def _rows(reviews: Sequence[Review], generator: random.Random) -> Iterator[dict[str, Any]]:
    for number, review in enumerate(reviews):
        words = review.text.split()
        end = {"label": review.positive, "finish_reason": "length"}
        if number % 2:
            opening, rest = words[:_OPENING], words[_OPENING : _OPENING + _WORDS]
            yield {"prompt": " ".join(opening), "completion": " " + " ".join(rest), **end}
        else:
            instruction = {"role": "user", "content": generator.choice(_INSTRUCTIONS)}
            yield {"prompt": [instruction], "completion": " ".join(words[:_WORDS]), **end}
