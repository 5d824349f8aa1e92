"""Which rows of the running batch want values or are steered, and where the results go.

vLLM tells the logits processor of every change to the batch; the model asks here, in the same
step, which of its rows to score and to tilt. There is one batch, so one table, per worker process.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cdserve.value_table import Ticket

REQUEST_KEY = "cdserve"
"""Key in ``SamplingParams.extra_args`` under which cdserve's own arguments ride."""


@dataclass(frozen=True, slots=True)
class Tilt:
    """How a row's next-token distribution is tilted by Q."""

    coefficients: Mapping[int, float]
    """weight / beta of each Q column."""
    top_k: int | None


@dataclass(slots=True)
class Row:
    """One request that wants values, or to be steered."""

    prompt_length: int
    output: Sequence[int]
    """The request's output tokens so far; vLLM keeps this list up to date."""
    temperature: float
    values: Ticket | None
    length: int | None
    """Tokens of the prefix whose V is wanted; None for every prefix of the prompt."""
    tilt: Tilt | None
    mix: Mapping[str, float] | None
    """Weight of each member's logits, ``base`` among them."""
    path: Ticket | None
    """Where a steered row's KL along its path goes, in nats."""
    spent: float = 0.0
    """KL of the steps before ``at``."""
    step_kl: float = 0.0
    """KL of the step at ``at``."""
    at: int = -1

    @classmethod
    def read(
        cls, wanted: Mapping[str, Any], prompt: int, output: Sequence[int], temperature: float
    ) -> "Row":
        """The row of a request whose ``extra_args`` hold ``wanted``."""
        values, path, tilt = wanted.get("values"), wanted.get("path"), wanted.get("tilt")
        return cls(
            prompt_length=prompt,
            output=output,
            temperature=temperature,
            values=values and Ticket.from_wire(values),
            length=wanted.get("length"),
            tilt=tilt and Tilt({int(k): float(v) for k, v in tilt["by"].items()}, tilt["top_k"]),
            mix=wanted.get("mix"),
            path=path and Ticket.from_wire(path),
        )

    @property
    def tokens(self) -> int:
        """Tokens of the prefix that this step's logits are conditioned on."""
        return self.prompt_length + len(self.output)

    def spend(self, kl: float) -> float:
        """The KL along the path with this step's, in nats.

        A prefix is met more than once: while a prompt is computed in chunks, and where a request
        goes on after preemption. Each time stands in for the one before.
        """
        if self.tokens != self.at:
            self.spent, self.at = self.spent + self.step_kl, self.tokens
        self.step_kl = kl
        return self.spent + self.step_kl


class Step(NamedTuple):
    """The rows of the batch that the next logits concern, by batch index."""

    due: Mapping[int, Row]
    """Those whose wanted prefix is this step's."""
    steered: Mapping[int, Row]
    """Those whose tokens are not drawn from the base model's distribution."""


class RowTable:
    """Batch index → request, for the requests that want values or are steered."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}
        self._armed = False

    def arm(self) -> None:
        """A step begins: the next logits are those of the batch's rows."""
        self._armed = True

    def take(self) -> Step:
        """The rows that this step's logits concern, once a step.

        While a prompt is computed in chunks, its row is due at each and right after the last.
        vLLM also computes logits for prompt logprobs and dummy runs, where rows mean other things:
        those come after the step's own, or without a step, and get none.
        """
        if not self._armed:
            return Step({}, {})
        self._armed = False
        return Step(
            {i: row for i, row in self._rows.items() if row.tokens == row.length},
            {i: row for i, row in self._rows.items() if row.tilt is not None or row.mix},
        )

    def every_position(self) -> dict[int, Row]:
        """The rows that want V of every prompt prefix."""
        return {
            i: row for i, row in self._rows.items() if row.values is not None and row.length is None
        }

    def members(self) -> set[str]:
        """The members that some row of the batch mixes in."""
        return {name for row in self._rows.values() for name in row.mix or ()} - {"base"}

    def remove(self, indices: Iterable[int]) -> None:
        """Requests left the batch."""
        for index in indices:
            self._rows.pop(index, None)

    def add(
        self,
        index: int,
        extra_args: Mapping[str, Any] | None,
        prompt: Sequence[int] | None,
        output: Sequence[int],
        temperature: float = 1.0,
    ) -> None:
        """A request came in at ``index``, in place of whatever was there."""
        self._rows.pop(index, None)
        wanted = (extra_args or {}).get(REQUEST_KEY)
        if isinstance(wanted, dict):
            self._rows[index] = Row.read(wanted, len(prompt or ()), output, temperature)

    def move(self, source: int, target: int, swap: bool) -> None:
        """The row at ``source`` now stands at ``target`` (and the other way round in a swap)."""
        moved, displaced = self._rows.pop(source, None), self._rows.pop(target, None)
        if moved is not None:
            self._rows[target] = moved
        if swap and displaced is not None:
            self._rows[source] = displaced


ROWS = RowTable()
