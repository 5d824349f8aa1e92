"""Extractors of a response's answer, for the served tests; the server imports them by name."""

import re


def last_word(text: str) -> str | None:
    """The last word of at least four letters."""
    words = re.findall(r"[A-Za-z]{4,}", text)
    return words[-1].lower() if words else None


def broken(text: str) -> str:
    """Raises an exception whose text no client may read."""
    raise ValueError(f"secret {text}")
