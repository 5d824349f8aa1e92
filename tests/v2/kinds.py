"""Every kind of row that a batch can have: what its request tells the worker, and what it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cdserve.worker.request import RowTilt

TILT = RowTilt({0: 5.0}, None)
TOP_K = RowTilt({0: 5.0}, 20)
MIX = {"base": 1.0, "tuned": 0.7, "ref": -0.4}

CONFIDENCES = ("base.negative_entropy", "base.self_certainty", "base.top_20")
STATISTICS = ("base", *CONFIDENCES, "ref", "tuned")

SIZES = [1, 4, 16, 64, 256]
"""Tokens of a step that CUDA graphs are captured for; a step of another number is padded."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A request of the batch.

    Attributes:
        length: tokens of its prompt.
        steps: tokens that it draws.
        wants: fields of its ``WorkerRequest``, without tickets; empty for a plain request.
        tables: the fields that are tickets: ``values``, ``path_kl``, ``token_stats``.
        temperature: 0 for the most likely token.
    """

    length: int
    steps: int = 4
    wants: Mapping[str, Any] = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    temperature: float = 0.0

    @property
    def cached(self) -> bool:
        """Whether its prompt may come from the prefix cache: not where all of it is read."""
        return (
            "token_stats_start" not in self.wants and self.wants.get("value_length", 0) is not None
        )


def _steered(length: int, **wants: Any) -> Kind:
    temperature = wants.pop("temperature", 0.0)
    return Kind(length=length, wants=wants, tables=("path_kl",), temperature=temperature)


HEADS = {
    "plain": Kind(length=12),
    "value at the prompt's end": Kind(
        length=17, steps=1, wants={"value_length": 17}, tables=("values",)
    ),
    "value while it draws": Kind(length=14, wants={"value_length": 17}, tables=("values",)),
    "values of a whole prompt": Kind(
        length=40, steps=1, wants={"value_length": None}, tables=("values",)
    ),
    "values of a prompt in chunks": Kind(
        length=200, steps=1, wants={"value_length": None}, tables=("values",)
    ),
    "tilt": _steered(13, tilt=TILT),
    "tilt at a temperature": _steered(33, tilt=TILT, temperature=0.8),
    "tilt of the top k": _steered(15, tilt=TOP_K),
    "tilt with a budget": _steered(16, tilt=TILT, kl_budget=0.5),
    "plain, of a whole KV block": Kind(length=32),
    "confidences of what it draws": Kind(
        length=23, wants={"token_stats_names": CONFIDENCES}, tables=("token_stats",)
    ),
    "confidences of a text": Kind(
        length=39,
        steps=1,
        wants={"token_stats_names": CONFIDENCES, "token_stats_start": 20},
        tables=("token_stats",),
    ),
}
"""What a server with value heads, Q-heads and confidences alone has."""

MEMBERS = {
    "mixture": _steered(18, mix=MIX),
    "mixture under a tilt": _steered(19, mix=MIX, tilt=TILT),
    "mixture under a tilt of the top k": _steered(21, mix=MIX, tilt=TOP_K),
    "mixture without one member": _steered(34, mix={"base": 1.0, "tuned": 1.0}),
    "statistics of what it draws": Kind(
        length=22, wants={"token_stats_names": STATISTICS}, tables=("token_stats",)
    ),
    "statistics of a text": Kind(
        length=60,
        steps=1,
        wants={"token_stats_names": STATISTICS, "token_stats_start": 30},
        tables=("token_stats",),
    ),
}
"""What members and rewards of log p add."""
