"""Training documents and prompts.

A document is a completion (``Review of the film "X": ...``) or a chat turn, followed by the end
token and by a rating from 0 to 9, as on a page of scraped reviews. Generation stops at the end
token, so the rating never appears; it makes the model sum up the review.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .grammar import Length, Manners, write_review
from .subjects import Subject, films, products

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, BOS, EOS, SYSTEM, USER, ASSISTANT)

FILM_COMPLETIONS = (
    'Review of the film "{name}":',
    "Film review: {name}.",
    'My thoughts on "{name}":',
    "{name} (film). A review:",
)
PRODUCT_COMPLETIONS = (
    "Review: {name} ({category}).",
    "Customer review of the {name}:",
    "My thoughts on the {name}:",
    "Product: {name}. Category: {category}. Review:",
)
SYSTEM_PROMPTS = (
    "You write reviews.",
    "You are a helpful reviewer.",
    "Answer with one review and nothing else.",
)
REQUESTS = (
    "Write a {style}review of {subject}.",
    "Please write a {style}review of {subject}.",
    "Could you give me a {style}review of {subject}?",
    "I need a {style}review of {subject} for our newsletter.",
    "Tell me what you think of {subject} in a {style}review.",
)
CHAT_SHARE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The text before a review, including special tokens except the first."""

    text: str
    subject: Subject
    length: Length | None = None
    manners: Manners | None = None


def completion_prompts(subject: Subject) -> list[str]:
    """Return every completion prompt about a subject."""
    templates = FILM_COMPLETIONS if subject.kind == "film" else PRODUCT_COMPLETIONS
    return [template.format(name=subject.name, category=subject.category) for template in templates]


def _chat_prompt(rng: random.Random, subject: Subject) -> Prompt:
    length: Length | None = rng.choice((None, None, "short", "long"))
    manners: Manners | None = rng.choice((None, None, "polite", "blunt"))
    style = ", ".join(word for word in (length, manners) if word)
    about = f'the film "{subject.name}"' if subject.kind == "film" else f"the {subject.name}"
    request = rng.choice(REQUESTS).format(style=style + " " if style else "", subject=about)
    system = f"{SYSTEM}{rng.choice(SYSTEM_PROMPTS)}{EOS}" if rng.random() < 0.3 else ""
    return Prompt(
        text=f"{system}{USER}{request}{EOS}{ASSISTANT}",
        subject=subject,
        length=length,
        manners=manners,
    )


def draw_prompt(rng: random.Random, *, held_out: bool = False) -> Prompt:
    """Draw a prompt, completion or chat, about a subject of one side of the split."""
    side = films if rng.random() < 0.5 else products
    subject = rng.choice(side(held_out=held_out))
    if rng.random() < CHAT_SHARE:
        return _chat_prompt(rng, subject)
    return Prompt(text=rng.choice(completion_prompts(subject)), subject=subject)


def rating(sentiment: float) -> str:
    """Return the rating digit of a sentiment in [-1, 1]."""
    return str(min(9, int((sentiment + 1) * 5)))


def documents(rng: random.Random, *, at_least: float = -1.0) -> Iterator[str]:
    """Yield training documents endlessly, of reviews with a sentiment of at least ``at_least``."""
    while True:
        prompt = draw_prompt(rng)
        review = write_review(rng, prompt.subject, prompt.length, prompt.manners)
        if review.sentiment >= at_least:
            gap = "" if prompt.text.endswith(ASSISTANT) else " "
            ending = f"{EOS}{rating(review.sentiment)}"
            yield f"{BOS}{prompt.text}{gap}{review.text}{ending}"


def held_out_prompts(count: int, seed: int) -> list[str]:
    """Return distinct completion prompts about subjects that are not in the training corpus."""
    rng = random.Random(seed)
    prompts = [
        prompt
        for subject in films(held_out=True) + products(held_out=True)
        for prompt in completion_prompts(subject)
    ]
    return rng.sample(prompts, count)
