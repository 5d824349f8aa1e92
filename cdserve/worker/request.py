"""What one engine request asks of the worker."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from cdserve.shared_table import Ticket

REQUEST_KEY = "cdserve"
"""Key in ``SamplingParams.extra_args`` under which a request for the worker rides."""


@dataclass(frozen=True, slots=True)
class Tilt:
    """How a request's next-token distribution is tilted by Q.

    Attributes:
        coefficients: weight / beta of each Q column.
        top_k: the tilt counts for the k most likely tokens; None for all.
    """

    coefficients: Mapping[int, float]
    top_k: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRequest:
    """What the worker computes for one engine request, besides its tokens.

    Attributes:
        prompt_length: in tokens.
        temperature: that its tokens are drawn at.
        values: where V of its prefixes goes; None if nobody reads it.
        length: tokens of the prefix whose V is wanted; None for every prefix of the prompt.
        tilt: by Q; None for no tilt.
        mix: weight of each model's logits, ``base`` among them; None for the base's own.
        path: where the KL along its path goes, in nats.
        budget: the KL that its path never exceeds, in nats. A step that would is not steered.
        likelihood: where log p of its tokens goes, summed from the prompt on, or from ``since``.
        models: those whose log p is wanted. They run even for a request that wants no log p, since
            others may read the KV cache that it leaves behind.
        since: tokens of the prompt before the first that is summed; None to sum those drawn.
    """

    prompt_length: int
    temperature: float = 1.0
    values: Ticket | None = None
    length: int | None = None
    tilt: Tilt | None = None
    mix: Mapping[str, float] | None = None
    path: Ticket | None = None
    budget: float = math.inf
    likelihood: Ticket | None = None
    models: frozenset[str] = frozenset()
    since: int | None = None

    @classmethod
    def from_wire(
        cls, extra_args: Mapping[str, Any] | None, prompt_length: int, temperature: float
    ) -> Self | None:
        """The request in these ``SamplingParams.extra_args``; None if there is none."""
        wire = (extra_args or {}).get(REQUEST_KEY)
        if not isinstance(wire, dict):
            return None
        tilt, budget = wire.get("tilt"), wire.get("budget")
        likelihood = wire.get("likelihood") or {}
        return cls(
            prompt_length=prompt_length,
            temperature=temperature,
            values=_ticket(wire.get("values")),
            length=wire.get("length"),
            tilt=tilt and Tilt({int(k): float(v) for k, v in tilt["by"].items()}, tilt["top_k"]),
            mix=wire.get("mix"),
            path=_ticket(wire.get("path")),
            budget=math.inf if budget is None else budget,
            likelihood=_ticket(likelihood.get("ticket")),
            models=frozenset(wire.get("models", ())),
            since=likelihood.get("since"),
        )


def _ticket(wire: list[str | int] | None) -> Ticket | None:
    return Ticket.from_wire(wire) if wire else None
