"""Short reviews of films and products, written by a grammar.

A review has a latent sentiment that every clause scatters around, so mixed reviews are common;
its length and its manners are drawn independently of the sentiment.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from cdserve.demo.tiny.lexicon import (
    ADJECTIVES,
    COMPARISONS,
    FILM_ANECDOTES,
    FILM_ASPECTS,
    FILM_ONLY,
    GENERAL_ASPECTS,
    MODIFIERS,
    PART_ASPECTS,
    PRODUCT_ANECDOTES,
    PRODUCT_ONLY,
    VERDICTS,
    Lexicon,
)
from cdserve.demo.tiny.reward import modified

from .subjects import Subject

Length = Literal["short", "medium", "long"]
Manners = Literal["polite", "blunt", "plain"]

SENTENCES: dict[Length, tuple[int, int]] = {"short": (2, 4), "medium": (5, 7), "long": (8, 10)}
LENGTHS: tuple[Length, ...] = ("short", "medium", "long")
MANNERS: tuple[Manners, ...] = ("polite", "blunt", "plain", "plain")
CLAUSE_SPREAD = 0.35  # standard deviation of a clause's valence around the review's
SLOT_WIDTH = 0.15  # how closely a phrase follows the target valence

FILM_OPENINGS = (
    "I saw this film on a rainy Tuesday.",
    "We watched it with the whole family.",
    "I went in without knowing a thing about it.",
    "A friend took me to see it last weekend.",
    "I caught it at the small cinema near the station.",
    "It ran late at night on the third channel.",
    "I watched it twice before writing this.",
    "My sister picked this one.",
    "The trailer had made me curious.",
)
PRODUCT_OPENINGS = (
    "I ordered the {noun} in March.",
    "I have used this {noun} for two months.",
    "The {noun} was a gift from my aunt.",
    "My old {noun} gave up, so I bought this one.",
    "I needed a {noun} for the new flat.",
    "We use the {noun} almost every day.",
    "I picked this {noun} after a long search.",
    "A colleague told me about this {noun}.",
)
POLITE = (
    "Thank you to everyone who worked on it.",
    "Please take this as one opinion among many.",
    "With respect, here is how I see it.",
    "I hope these lines help other readers.",
    "I say this with kind regards to the team.",
    "Thanks for reading.",
)
BLUNT = (
    "Let me be blunt.",
    "No sugar coating here.",
    "I will not waste words.",
    "Take it or leave it.",
    "Somebody has to say it.",
    "Spare me the marketing.",
)
PHRASES: dict[Manners, tuple[str, ...]] = {"polite": POLITE, "blunt": BLUNT, "plain": ()}
FILLERS = (
    "I sat near the back.",
    "It was a Friday evening.",
    "The lights were low.",
    "I made notes as I went.",
)
PRODUCT_FILLERS = (
    "It came in a brown box.",
    "I live alone, so I use it for one.",
    "Mine is the grey one.",
    "I keep it on the lower shelf.",
)
SAME = ("Also,", "On top of that,", "What is more,", "Likewise,")
OPPOSITE = ("Still,", "On the other hand,", "That said,", "Even so,")
FINALLY = ("All in all,", "In short,", "In the end,", "To sum up,")
WHEN = ("On the first evening,", "At one point,", "Halfway through,", "By the end,")
OTHERS = (
    "Compared with the last one I tried, it",
    "Next to others of its kind, it",
    "Set against what my brother has, it",
)
FILM_OTHERS = (
    "Compared with the book, it",
    "Next to others of its kind, it",
    "Set against the first part, it",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A review with its properties; ``valences`` lists the valences of its phrases in order."""

    text: str
    valences: tuple[float, ...]
    length: Length
    manners: Manners

    @property
    def sentiment(self) -> float:
        """The mean valence of the review's phrases."""
        return sum(self.valences) / len(self.valences)


class _Writer:
    """Writes one review without using a phrase twice."""

    def __init__(self, rng: random.Random, subject: Subject) -> None:
        self.rng = rng
        self.film = subject.kind == "film"
        self.noun = subject.noun
        self.latent = rng.uniform(-0.85, 0.85)
        self.adjectives = {
            adjective: valence
            for adjective, valence in ADJECTIVES.items()
            if adjective not in (PRODUCT_ONLY if self.film else FILM_ONLY)
        }
        self.valences: list[float] = []
        self.said: set[str] = set()
        self.aspects: dict[str, Lexicon] = FILM_ASPECTS if self.film else GENERAL_ASPECTS
        self.aspects = self.aspects | {part: PART_ASPECTS[part] for part in subject.parts}

    def once(self, options: Sequence[str]) -> str:
        """Draw one of the options that has not been used in this review."""
        choice = self.rng.choice([option for option in options if option not in self.said])
        self.said.add(choice)
        return choice

    def phrase(self, lexicon: Lexicon) -> str:
        """Draw an unused phrase with a valence near the review's sentiment, and record it."""
        target = self.rng.gauss(self.latent, CLAUSE_SPREAD)
        free = [phrase for phrase in lexicon if phrase not in self.said]
        nearest = min(abs(lexicon[phrase] - target) for phrase in free)
        weights = [
            2.0 ** (-(((abs(lexicon[phrase] - target) - nearest) / SLOT_WIDTH) ** 2))
            for phrase in free
        ]
        choice = self.rng.choices(free, weights)[0]
        self.said.add(choice)
        self.valences.append(lexicon[choice])
        return choice

    def aspect(self) -> str:
        """Write a clause about one aspect, with a phrase of the aspect or an adjective."""
        noun = self.once(sorted(self.aspects))
        if self.rng.random() < 0.55:
            return f"the {noun} {self.phrase(self.aspects[noun])}"
        adjective = self.phrase(self.adjectives)
        if self.rng.random() < 0.4:
            modifier = self.rng.choice(sorted(MODIFIERS))
            self.valences[-1] = modified(modifier, adjective)
            adjective = f"{modifier} {adjective}"
        return f"the {noun} is {adjective}"

    def aspect_sentence(self) -> str:
        """Write one or two clauses about aspects, joined according to their valences."""
        before = self.valences[-1] if self.valences else None
        clause = self.aspect()
        if before is not None and self.rng.random() < 0.35:
            agree = (before > 0) == (self.valences[-1] > 0)
            connectives = SAME if agree else OPPOSITE
            if set(connectives) - self.said:
                clause = f"{self.once(connectives)} {clause}"
        if self.rng.random() < 0.35 and self.aspects.keys() - self.said:
            first = self.valences[-1]
            second = self.aspect()
            agree = (first > 0) == (self.valences[-1] > 0)
            clause = f"{clause}{', and ' if agree else ', but '}{second}"
        return clause

    def middle(self) -> str:
        """Write one sentence of the body, of a kind that still has unused phrases."""
        fillers = FILLERS if self.film else PRODUCT_FILLERS
        others = FILM_OTHERS if self.film else OTHERS
        kinds: tuple[tuple[float, Collection[str], Callable[[], str]], ...] = (
            (0.67, self.aspects, self.aspect_sentence),
            (0.15, WHEN, self.anecdote),
            (0.10, others, lambda: f"{self.once(others)} {self.phrase(COMPARISONS)}"),
            (0.08, fillers, lambda: self.once(fillers)),
        )
        left = [kind for kind in kinds if set(kind[1]) - self.said]
        _, _, write = self.rng.choices(left, [weight for weight, _, _ in left])[0]
        return write()

    def anecdote(self) -> str:
        """Write an anecdote."""
        anecdotes = FILM_ANECDOTES if self.film else PRODUCT_ANECDOTES
        return f"{self.once(WHEN)} {self.phrase(anecdotes)}"

    def opening(self) -> str:
        """Write the first sentence."""
        options = FILM_OPENINGS if self.film else PRODUCT_OPENINGS
        return self.once(options).format(noun=self.noun)

    def verdict(self) -> str:
        """Write the closing sentence."""
        return f"{self.rng.choice(FINALLY)} {self.phrase(VERDICTS)}"


def _finish(sentence: str) -> str:
    """Capitalise the first letter and add a full stop."""
    return sentence[0].upper() + sentence[1:] + ("" if sentence.endswith(".") else ".")


def write_review(
    rng: random.Random,
    subject: Subject,
    length: Length | None = None,
    manners: Manners | None = None,
) -> Review:
    """Write a review of a subject; draw the length and the manners unless given."""
    any_length: Length = rng.choice(LENGTHS)
    any_manners: Manners = rng.choice(MANNERS)
    length, manners = length or any_length, manners or any_manners
    low, high = SENTENCES[length]
    count = rng.randint(low, high)
    writer = _Writer(rng, subject)
    sentences = [writer.opening()] if length != "short" or rng.random() < 0.5 else []
    phrases = PHRASES[manners]
    if phrases and rng.random() < 0.5:
        sentences.insert(0, writer.once(phrases))
        phrases = ()
    while len(sentences) < count - 1 or not writer.valences:
        sentences.append(writer.middle())
    sentences.append(writer.verdict())
    if phrases:
        sentences.append(writer.once(phrases))
    return Review(
        text=" ".join(_finish(sentence) for sentence in sentences),
        valences=tuple(writer.valences),
        length=length,
        manners=manners,
    )
