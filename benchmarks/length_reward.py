"""The reward of the length experiment of Controlled Decoding (arXiv 2310.17022, section 5)."""

import math

SCALE = 1024
"""Words of a response whose reward is 0."""


def log_words(prompt: str, response: str) -> float:
    """log(words / 1024); a response without words counts as one word."""
    return math.log(max(1, len(response.split())) / SCALE)
