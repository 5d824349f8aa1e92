"""Rewards that fail, for the served tests; the server imports them by their names."""

import time


def hangs(prompt: str, response: str) -> float:
    """Never comes back."""
    time.sleep(3600)
    return 0.0


def slow(prompt: str, response: str) -> float:
    """Takes a while, and is right."""
    time.sleep(0.1)
    return float(len(response))


def nan(prompt: str, response: str) -> float:
    """Gives no number."""
    return float("nan")
