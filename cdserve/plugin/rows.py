"""Which rows of the running batch want values or are steered, and where the results go.

An adapter to vLLM's model runner (``runner_v1``, ``runner_v2``) says before each step which rows
it has; the model asks here, in the same step, which of its rows to score and to steer. There is one
batch, so one table, per worker process.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cdserve.value_table import Ticket

if TYPE_CHECKING:
    from torch import Tensor

REQUEST_KEY = "cdserve"
"""Key in ``SamplingParams.extra_args`` under which cdserve's own arguments ride."""


@dataclass(frozen=True, slots=True)
class Tilt:
    """How a row's next-token distribution is tilted by Q."""

    coefficients: Mapping[int, float]
    """weight / beta of each Q column."""
    top_k: int | None


@dataclass(frozen=True, slots=True)
class Ahead:
    """Where a row's next token is to be looked up."""

    logprobs: "Tensor"
    """Of several rows, ``[N, models, |V|]``."""
    index: int
    """Which of them is the row's."""
    columns: Sequence[int]
    """Of the models."""
    tokens: int
    """Of the prefix before the next token."""


@dataclass(slots=True)
class Row:
    """One request that wants values, or to be steered."""

    prompt_length: int
    temperature: float
    values: Ticket | None
    length: int | None
    """Tokens of the prefix whose V is wanted; None for every prefix of the prompt."""
    tilt: Tilt | None
    mix: Mapping[str, float] | None
    """Weight of each member's logits, ``base`` among them."""
    path: Ticket | None
    """Where a steered row's KL along its path goes, in nats."""
    budget: float | None = None
    """Nats that it never passes: a step that would is not steered."""
    likelihood: Ticket | None = None
    """Where log p of its tokens goes, summed from the prompt on, or from ``since``."""
    models: frozenset[str] = frozenset()
    """Under which models, ``base`` and members; they run even for a row that wants no log p, where
    others of its prefix cache's do."""
    since: int | None = None
    """Tokens of the prompt before the first that is summed; None if those drawn are."""
    tokens: int = 0
    """Of the prefix that the step's logits are conditioned on; set before each step."""
    draws: bool = True
    """Whether the step draws the row's next token; a chunk of a prompt before the last does not."""
    spent: float = 0.0
    """KL of the steps before ``at``."""
    step_kl: float = 0.0
    """KL of the step at ``at``."""
    unsteered: int = 0
    """Steps before ``at`` that the budget left unsteered."""
    step_unsteered: bool = False
    """Whether the step at ``at`` is one."""
    at: int = -1
    total: npt.NDArray[np.float64] | None = None
    """log p summed so far, ``[models]``; None where it is not known."""
    ahead: Ahead | None = None
    """Where the next token is to be looked up."""

    @classmethod
    def read(
        cls, extra_args: Mapping[str, Any] | None, prompt_length: int, temperature: float
    ) -> "Row | None":
        """The row of a request with these ``SamplingParams.extra_args``; None if it wants none."""
        wanted = (extra_args or {}).get(REQUEST_KEY)
        if not isinstance(wanted, dict):
            return None
        values, path, tilt = wanted.get("values"), wanted.get("path"), wanted.get("tilt")
        likelihood = wanted.get("likelihood") or {}
        return cls(
            prompt_length=prompt_length,
            temperature=temperature,
            values=values and Ticket.from_wire(values),
            length=wanted.get("length"),
            tilt=tilt and Tilt({int(k): float(v) for k, v in tilt["by"].items()}, tilt["top_k"]),
            mix=wanted.get("mix"),
            path=path and Ticket.from_wire(path),
            budget=wanted.get("budget"),
            likelihood=Ticket.from_wire(likelihood["ticket"]) if likelihood else None,
            models=frozenset(wanted.get("models", ())),
            since=likelihood.get("since"),
        )

    @property
    def due(self) -> bool:
        """Whether V of the prefix behind this step's logits is wanted."""
        last = self.prompt_length if self.length is None else self.length
        return self.values is not None and self.tokens == last

    @property
    def steered(self) -> bool:
        """Whether the step draws from another distribution than the base model's."""
        return self.draws and (self.tilt is not None or bool(self.mix))

    def affords(self, tokens: int, kl: float) -> bool:
        """Begins a step: whether steering it, at this KL, stays within the budget.

        Args:
            tokens: of the prefix that its logits are conditioned on.
            kl: in nats.

        A prefix is met more than once: while a prompt is computed in chunks, and where a request
        goes on after preemption. Each time stands in for the one before.
        """
        if tokens != self.at:
            self.spent, self.at = self.spent + self.step_kl, tokens
            self.unsteered += self.step_unsteered
        # Less a little: what is rounded on its way back must not pass the budget. A KL that is no
        # number is no reason to go on unsteered: it is to be reported.
        limit = math.inf if self.budget is None else self.budget * (1.0 - 1e-5)
        self.step_unsteered = self.spent + kl > limit
        self.step_kl = 0.0 if self.step_unsteered else kl
        return not self.step_unsteered

    @property
    def path_so_far(self) -> tuple[float, int]:
        """KL along the path in nats, this step's included; steps left unsteered."""
        return self.spent + self.step_kl, self.unsteered + self.step_unsteered


class Step(NamedTuple):
    """The rows of the batch that the next logits concern, by batch index."""

    due: Mapping[int, Row]
    """Those whose wanted prefix is this step's."""
    steered: Mapping[int, Row]
    """Those whose tokens are not drawn from the base model's distribution."""
    likely: Mapping[int, Row]
    """Those that want log p of the tokens drawn."""


class RowTable:
    """The rows of the running step, by batch index, that want values or are steered."""

    def __init__(self) -> None:
        self._rows: Mapping[int, Row] = {}
        self._armed = False
        self.starts: npt.NDArray[np.int32] | None = None
        """Where each row's tokens begin in the step's, and where the last row's end,
        ``[rows + 1]``; None where the runner does not say."""

    def begin(self, rows: Mapping[int, Row], starts: npt.NDArray[np.int32] | None = None) -> None:
        """A step begins: the next pass and its logits are of a batch in which these rows ask.

        Until ``take`` ends it. Any other pass that vLLM makes is no step: it captures a graph,
        measures memory, or keeps other ranks company.
        """
        self._rows, self._armed, self.starts = rows, True, starts

    def take(self) -> Step:
        """The rows that this step's logits concern, once a step.

        vLLM also computes logits for prompt logprobs and dummy runs, where rows mean other things:
        those come after the step's own, or without a step, and get none.
        """
        if not self._armed:
            return Step({}, {}, {})
        self._armed = False
        return Step(
            {i: row for i, row in self._rows.items() if row.due},
            {i: row for i, row in self._rows.items() if row.steered},
            {i: row for i, row in self._rows.items() if row.likelihood and row.since is None},
        )

    def every_position(self) -> dict[int, Row]:
        """The rows that want V of every prompt prefix; none in a pass that is no step."""
        rows = self._rows.items() if self._armed else ()
        return {i: row for i, row in rows if row.values is not None and row.length is None}

    def likely(self) -> dict[int, Row]:
        """The rows that want log p of tokens, given or drawn; none in a pass that is no step."""
        return {i: row for i, row in self._rows.items() if row.likelihood} if self._armed else {}

    def members(self) -> set[str] | None:
        """The members that some row of the batch mixes in, or whose log p it wants.

        None in a pass that is no step: all members run, so that graphs of all are captured.
        """
        if not self._armed:
            return None
        rows = self._rows.values()
        return {name for row in rows for name in (*(row.mix or ()), *row.models)} - {"base"}


ROWS = RowTable()
