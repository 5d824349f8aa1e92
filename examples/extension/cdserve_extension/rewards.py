"""Rewards: functions of a prompt and a response, finished or not."""


def variety(prompt: str, response: str) -> float:
    """Share of the words that do not come twice; 0 where there are none."""
    words = response.lower().split()
    return len(set(words)) / len(words) if words else 0.0
