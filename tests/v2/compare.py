"""How two runs of the same batch differ, in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
"""What a request drew and what was written of it, as ``run`` has it."""

TOLERANCES = {"logprobs": 2e-4, "values": 1e-5, "path_kl": 1e-4, "token_stats": 1e-4}
"""Largest difference of a log-probability, of V, and of nats summed along a path."""


def differences(one: Result, other: Result) -> list[str]:
    """What two results of the same request disagree about; empty if they are the same."""
    return list(_differences(one, other))


def _differences(one: Result, other: Result) -> Iterator[str]:
    if one["tokens"] != other["tokens"]:
        yield f"tokens: {one['tokens']} and {other['tokens']}"
        return
    for step, (a, b) in enumerate(zip(one["logprobs"], other["logprobs"], strict=True)):
        # The last of the most likely may be another one, where two are equally likely.
        both = [token for token in a if token in b]
        if len(both) < len(a) - 1:
            yield f"the most likely tokens of step {step}: {list(a)} and {list(b)}"
        yield from _far("logprobs", step, [a[t] for t in both], [b[t] for t in both])
    for name in ("values", "path_kl", "token_stats"):
        if name not in one:
            continue
        if one[name].keys() != other[name].keys() or not one[name]:
            yield f"{name} of prefixes of {list(one[name])} and of {list(other[name])} tokens"
            continue
        for tokens, row in one[name].items():
            yield from _far(name, tokens, row, other[name][tokens])


def _far(name: str, place: object, a: Sequence[float], b: Sequence[float]) -> Iterator[str]:
    worst = max((abs(x - y) for x, y in zip(a, b, strict=True)), default=0.0)
    if not worst <= TOLERANCES[name]:  # also where it is no number
        yield f"{name} at {place}: off by {worst:.2g}"
