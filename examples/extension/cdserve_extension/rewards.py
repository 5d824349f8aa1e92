"""Rewards: functions of a prompt and a finished or unfinished response."""


def variety(prompt: str, response: str) -> float:
    """Number of distinct words divided by the number of words; 0 without words."""
    words = response.lower().split()
    return len(set(words)) / len(words) if words else 0.0
