"""Training data of the heads: beginnings of labelled reviews, and prompts to the model."""

import json
import random
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from cdserve.demo.build.reviews import Review

_OPENING = 5
"""Words of a review that are the prompt of a completion."""
_WORDS = 80
"""Words of a response."""
_SITUATIONS = (
    "",
    "You have just left the cinema. ",
    "You write about films for a newspaper. ",
    "A friend wonders whether to see a film. ",
    "We collect opinions of our audience. ",
    "You watched a film last night. ",
    "I run a website about films. ",
    "You are a critic. ",
)
_REQUESTS = (
    "Write a film review.",
    "Write a short review of a film that you have seen.",
    "Tell me what you thought of the film.",
    "How was the film?",
    "Give your honest opinion of the film in a few sentences.",
    "Say what you think of the story and the actors.",
    "Write a comment on the film, in one paragraph.",
    "Describe the film and say whether it is worth seeing.",
)
INSTRUCTIONS = tuple(map("".join, product(_SITUATIONS, _REQUESTS)))
"""Instructions that a review answers."""

_TITLES = [
    f"The {adjective} {noun}"
    for adjective, noun in product(
        ("Silent", "Golden", "Broken", "Northern", "Paper", "Crimson", "Lost", "Hollow"),
        ("Garden", "Hour", "Train", "Letters", "Coast", "Machine", "Winter", "Mirror"),
    )
]


def write_examples(reviews: Sequence[Review], path: Path) -> None:
    """Writes one row per review: completions and chats, cut responses and ended ones, in turn.

    A row is ``{"prompt", "response", "rewards": {"sentiment": 1.0}, "finish_reason"}``; the prompt
    is a text or the messages of a chat. An ended response has whole sentences: a head that saw none
    would know nothing of the state behind the end token.
    """
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for row in _rows(reviews, generator):
            file.write(json.dumps(row) + "\n")


def write_prompts(reviews: Sequence[Review], path: Path) -> None:
    """Writes two prompts per review: the opening of the review, and an instruction."""
    generator = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for number, review in enumerate(reviews):
            titles = [generator.choice(_TITLES) for _ in range(2)]
            instruction = INSTRUCTIONS[number % len(INSTRUCTIONS)]
            instruction = instruction.replace("the film", f'the film "{titles[0]}"', 1)
            about = f'a review of the film "{titles[1]}"'
            instruction = instruction.replace("a film review", about, 1)
            opening = " ".join(review.text.split()[:_OPENING])
            for prompt in (opening, [{"role": "user", "content": instruction}]):
                file.write(json.dumps({"prompt": prompt}) + "\n")


def _rows(reviews: Sequence[Review], generator: random.Random) -> Iterator[dict[str, Any]]:
    for number, review in enumerate(reviews):
        words = review.text.split()
        completion, ended = number % 2 == 1, number // 2 % 2 == 1
        start = _OPENING if completion else 0
        response: Sequence[str] = words[start : start + _WORDS]
        if ended:
            response = _whole_sentences(response, generator)
        reason = "stop" if ended else "length"
        row = {"rewards": {"sentiment": float(review.positive)}, "finish_reason": reason}
        if completion:
            text = " " + " ".join(response)
            yield {"prompt": " ".join(words[:_OPENING]), "response": text, **row}
        else:
            instruction = {"role": "user", "content": generator.choice(INSTRUCTIONS)}
            yield {"prompt": [instruction], "response": " ".join(response), **row}


def _whole_sentences(words: Sequence[str], generator: random.Random) -> Sequence[str]:
    """The words up to the end of a sentence, drawn from all ends; all words without one."""
    ends = [number for number, word in enumerate(words, 1) if word.endswith((".", "!", "?"))]
    return words[: generator.choice(ends)] if ends else words
