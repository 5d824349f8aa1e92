"""A reward beside the demo's, for heads of two."""


def brevity(prompt: str, response: str) -> float:
    """Minus the response's length, in hundreds of characters."""
    return -len(response) / 100
