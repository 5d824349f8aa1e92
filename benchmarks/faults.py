"""A reward that fails at random, for the soak test; the server imports it by name."""

import random
import time


def flaky(prompt: str, response: str) -> float:
    """The response's length; sometimes raises, or takes far longer than its timeout."""
    fate = random.random()
    if fate < 0.04:
        raise RuntimeError("an injected fault")
    if fate < 0.05:
        time.sleep(1.0)
    if fate < 0.06:
        return float("nan")
    return float(len(response))
