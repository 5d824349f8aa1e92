"""The ground-truth reward of the demo: how positive a review is.

The reward is exact for texts that the grammar writes, needs no model, and is imported by the
server as an ordinary Python reward; it depends on the standard library alone.
"""

import re

from .lexicon import ADJECTIVES, MODIFIERS, PHRASES


def _alternation(phrases: dict[str, float]) -> str:
    """Match any of the phrases, longest first, with any white space between words."""
    longest_first = sorted(phrases, key=len, reverse=True)
    return "|".join(re.escape(phrase).replace(r"\ ", r"\s+") for phrase in longest_first)


_SENTIMENT = re.compile(
    rf"\b(?:(?P<phrase>{_alternation(PHRASES)})"
    rf"|(?:(?P<modifier>{_alternation(MODIFIERS)})\s+)?(?P<adjective>{_alternation(ADJECTIVES)}))\b",
    re.IGNORECASE,
)
_FOLDED = {phrase.lower(): valence for phrase, valence in PHRASES.items()}


def modified(modifier: str, adjective: str) -> float:
    """Return the valence of an adjective behind a modifier, kept in [-1, 1]."""
    return max(-1.0, min(1.0, MODIFIERS[modifier] * ADJECTIVES[adjective]))


def valences(text: str) -> list[float]:
    """Return the valence of every phrase of the lexicon found in `text`, in order."""
    found = []
    for match in _SENTIMENT.finditer(text):
        phrase, modifier, adjective = (
            " ".join(part.lower().split()) if part else "" for part in match.groups()
        )
        if phrase:
            found.append(_FOLDED[phrase])
        elif modifier:
            found.append(modified(modifier, adjective))
        else:
            found.append(ADJECTIVES[adjective])
    return found


def sentiment(text: str) -> float:
    """Return the mean valence of the phrases in `text`, in [-1, 1]; 0 where there are none.

    A phrase that is cut off does not count, so the reward of a growing text changes only when a
    phrase is completed.
    """
    found = valences(text)
    return sum(found) / len(found) if found else 0.0


def sentiment_gold(prompt: str, response: str) -> float:
    """Score a response; the prompt does not matter."""
    return sentiment(response)
