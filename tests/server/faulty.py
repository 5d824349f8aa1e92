"""Rewards that fail, for the served tests; the server imports them by their names."""

import time

SECRET = "https://scorer.internal/?key=hunter2"


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


def leaks(prompt: str, response: str) -> float:
    """Raises what no client may read: the operator's secret, and the response."""
    raise RuntimeError(f"{SECRET} {response}")


def leaks_late(prompt: str, response: str) -> float:
    """Raises after a silence in which a stream gets comments."""
    time.sleep(0.5)
    return leaks(prompt, response)


def counts(prompt: str, response: str) -> int:
    """Counts in integers."""
    return len(response)


def agrees(prompt: str, response: str) -> bool:
    """Gives a truth value."""
    return bool(response)
