"""The ground-truth reward of the demo: how positive a review is.

The reward is exact for texts written by the grammar and needs no model. The server imports it as an
ordinary Python reward; it uses only the standard library.
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
    """Return the valence of an adjective after a modifier, clipped to [-1, 1]."""
    return max(-1.0, min(1.0, MODIFIERS[modifier] * ADJECTIVES[adjective]))


def valences(text: str) -> list[float]:
    """Return the valences of all phrases of the lexicon in ``text``, in order."""
    values = []
    for match in _SENTIMENT.finditer(text):
        phrase, modifier, adjective = (
            " ".join(part.lower().split()) if part else "" for part in match.groups()
        )
        if phrase:
            values.append(_FOLDED[phrase])
        elif modifier:
            values.append(modified(modifier, adjective))
        else:
            values.append(ADJECTIVES[adjective])
    return values


def sentiment(text: str) -> float:
    """Return the mean valence of the phrases in ``text``, in [-1, 1]; 0 without phrases.

    An incomplete phrase does not count, so the reward of a growing text changes only when a phrase
    is completed.
    """
    values = valences(text)
    return sum(values) / len(values) if values else 0.0


def sentiment_gold(prompt: str, response: str) -> float:
    """Return the sentiment of a response; the prompt is ignored."""
    return sentiment(response)
