"""A second reward, for heads with two outputs."""


def brevity(prompt: str, response: str) -> float:
    """Minus the response's length, in hundreds of characters."""
    return -len(response) / 100
