"""Which rows of the running batch want values, and where those go.

vLLM tells the logits processor of every change to the batch; the model asks here, in the same
step, which of its rows to score. There is one batch, so one table, per worker process.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cdserve.value_table import Ticket

REQUEST_KEY = "cdserve"
"""Key in ``SamplingParams.extra_args`` under which cdserve's own arguments ride."""


@dataclass(slots=True)
class ValueRow:
    """One request that wants values."""

    ticket: Ticket
    prompt_length: int
    output: Sequence[int]
    """The request's output tokens so far; vLLM keeps this list up to date."""
    length: int | None
    """Tokens of the prefix whose V is wanted; None for every prefix of the prompt."""

    @property
    def due(self) -> bool:
        """Whether this step's logits are conditioned on the wanted prefix."""
        return self.prompt_length + len(self.output) == self.length


class RowTable:
    """Batch index → request, for the requests that want values."""

    def __init__(self) -> None:
        self._rows: dict[int, ValueRow] = {}
        self._armed = False

    def arm(self) -> None:
        """A step begins: the next logits are those of the batch's rows."""
        self._armed = True

    def take(self) -> dict[int, ValueRow]:
        """The rows whose wanted prefix is this step's, once a step.

        While a prompt is computed in chunks, its row is due at each and right after the last.
        vLLM also computes logits for prompt logprobs and dummy runs, where rows mean other things:
        those come after the step's own, or without a step, and get none.
        """
        if not self._armed:
            return {}
        self._armed = False
        return {i: row for i, row in self._rows.items() if row.due}

    def every_position(self) -> dict[int, ValueRow]:
        """The rows that want V of every prompt prefix."""
        return {i: row for i, row in self._rows.items() if row.length is None}

    def remove(self, indices: Iterable[int]) -> None:
        """Requests left the batch."""
        for index in indices:
            self._rows.pop(index, None)

    def add(
        self,
        index: int,
        extra_args: dict[str, object] | None,
        prompt: Sequence[int] | None,
        output: Sequence[int],
    ) -> None:
        """A request came in at ``index``, in place of whatever was there."""
        self._rows.pop(index, None)
        wanted = (extra_args or {}).get(REQUEST_KEY)
        if isinstance(wanted, dict):
            ticket = Ticket.from_wire(wanted["values"])
            self._rows[index] = ValueRow(ticket, len(prompt or ()), output, wanted["length"])

    def move(self, source: int, target: int, swap: bool) -> None:
        """The row at ``source`` now stands at ``target`` (and the other way round in a swap)."""
        moved, displaced = self._rows.pop(source, None), self._rows.pop(target, None)
        if moved is not None:
            self._rows[target] = moved
        if swap and displaced is not None:
            self._rows[source] = displaced


ROWS = RowTable()
