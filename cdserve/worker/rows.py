"""Which rows of the running batch want values or are steered, and where the results go.

An adapter to vLLM's model runner (``runner_v1``, ``runner_v2``) says which request has which slot,
and before each step which rows the batch has; the model asks here, in the same step, which of its
rows to score and to steer. There is one batch, so one table, per worker process.

What requests ask is kept in arrays, one entry a slot, and gathered by the slots of a step's rows:
the host's work in a step does not grow with its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cdserve.worker.request import WorkerRequest
from cdserve.worker.tickets import Ints, Places, Tickets

Floats = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]

MIXED, TILTED = 1, 2
"""Of a steered row: its logits are mixed, tilted, or both. As the kernels know them."""
TOP_K, BOUNDED, MEASURED, VALUED, EVERY, LIKELY, TEXT = (1 << i for i in range(2, 9))
"""More of what a row asks: a tilt of its top k, a budget, its KL, V of a prefix, V of every prefix
of its prompt, log p of the tokens that it draws, or of a text."""
_MEMBERS = 16
"""The bit of the first member that a row asks to run; those of the others follow."""
_MOST_MEMBERS = 63 - _MEMBERS
_NEVER = -1


@dataclass(slots=True, kw_only=True)
class Due:
    """Rows whose V is wanted of the prefix behind this step's logits."""

    index: Ints
    """Rows of the batch, int64 ``[n]``."""
    tokens: Ints
    """Of each prefix, int64 ``[n]``."""
    places: Places
    """Where the values go."""


@dataclass(slots=True, kw_only=True)
class Spans:
    """Rows whose tokens are given, and wanted one by one as far as the step computes them."""

    index: Ints
    slots: Ints
    tokens: Ints
    """Of each row's prefix at the end of the step."""
    since: Ints
    """Tokens of the prompt before the first whose log p is summed."""
    requests: Ints
    """A number of each row's request that no other has."""
    places: Places


@dataclass(slots=True, kw_only=True)
class Steered:
    """Rows whose tokens are not drawn from the base model's distribution; ``[n]`` each."""

    index: Ints
    slots: Ints
    tokens: Ints
    flags: Ints
    """``MIXED``, ``TILTED``, ``TOP_K``, ``BOUNDED``, ``MEASURED``."""
    top_k: Ints
    """0 for all tokens."""
    coefficients: Floats
    """weight / beta of each Q column, ``[n, columns]``."""
    weights: Floats
    """Of the base's logits and each member's, ``[n, 1 + members]``."""
    temperatures: Floats
    budgets: Floats
    """In nats; infinite for none."""
    begins: Masks
    """Whether this is the first step in which a row draws since it took its slot."""
    before: npt.NDArray[np.float64]
    """KL of its path before that, and steps that a budget left unsteered, ``[n, 2]``; ``[0, 2]``
    where no row begins."""
    places: Places
    """Where the KL along the path goes."""
    some: int
    """Flags that some rows have."""
    alike: bool
    """Whether all rows have the same flags."""

    def of(self, rows: Ints | slice) -> "Steered":
        """Some of them."""
        flags = self.flags[rows]
        return Steered(
            index=self.index[rows],
            slots=self.slots[rows],
            tokens=self.tokens[rows],
            flags=flags,
            top_k=self.top_k[rows],
            coefficients=self.coefficients[rows],
            weights=self.weights[rows],
            temperatures=self.temperatures[rows],
            budgets=self.budgets[rows],
            begins=self.begins[rows],
            before=self.before[rows] if len(self.before) else self.before,
            places=self.places.of(rows),
            some=_some(flags),
            alike=self.alike,
        )


@dataclass(slots=True, kw_only=True)
class Likely:
    """Rows that want log p of the tokens that they draw; ``[n]`` each."""

    index: Ints
    slots: Ints
    tokens: Ints
    first: Masks
    """Whether the step draws the first token whose log p counts."""
    requests: Ints
    """A number of each row's request that no other has."""
    places: Places


class Step(NamedTuple):
    """The rows of the batch that the next logits concern; None where there are none."""

    due: Due | None
    steered: Steered | None
    likely: Likely | None


class RowTable:
    """What the requests of the batch ask, by slot, and the rows of the running step.

    Args:
        slots: requests that can be in the batch at once.
        columns: outputs of the Q-heads.
        members: their names.

    Raises:
        ValueError: as ``resize`` does.
    """

    def __init__(self, slots: int = 0, columns: int = 0, members: Sequence[str] = ()) -> None:
        self.resize(slots, columns, members)

    def resize(self, slots: int, columns: int, members: Sequence[str]) -> None:
        """As a new table of this size.

        Raises:
            ValueError: there are more than 47 members.
        """
        if len(members) > _MOST_MEMBERS:
            raise ValueError(f"there are {len(members)} members; at most {_MOST_MEMBERS} can run")
        self._members = tuple(members)
        self._taken = 0
        self._requests = np.zeros(slots, np.int64)
        self._flags = np.zeros(slots, np.int64)
        self._scored_at = np.full(slots, _NEVER, np.int64)
        self._first = np.zeros(slots, np.int64)
        self._prompts = np.zeros(slots, np.int64)
        self._since = np.zeros(slots, np.int64)
        self._top_k = np.zeros(slots, np.int64)
        self._coefficients = np.zeros((slots, columns), np.float32)
        self._weights = np.zeros((slots, 1 + len(members)), np.float32)
        self._temperatures = np.ones(slots, np.float32)
        self._budgets = np.full(slots, np.inf, np.float32)
        self._before = np.zeros((slots, 2))
        self._values, self._paths, self._likelihoods = (Tickets(slots) for _ in range(3))
        self.starts: Ints | None = None
        self._end()

    def put(
        self,
        slot: int,
        request: WorkerRequest | None,
        tokens: int = 0,
        before: tuple[float, int] = (0.0, 0),
    ) -> None:
        """A request takes a slot, or one that asks nothing (None).

        Args:
            tokens: those it has, which are more than its prompt's if it is back from preemption.
            before: KL of its path so far, in nats, and its steps that a budget left unsteered.
        """
        self._taken += 1
        self._requests[slot] = self._taken
        self._flags[slot] = 0
        self._scored_at[slot] = _NEVER
        if request is not None:
            self._note(slot, request, tokens, before)
        self._values.put(slot, request.values if request else None)
        self._paths.put(slot, request.path if request else None)
        self._likelihoods.put(slot, request.likelihood if request else None)

    def _note(
        self, slot: int, request: WorkerRequest, tokens: int, before: tuple[float, int]
    ) -> None:
        tilt, mix = request.tilt, request.mix or {}
        if request.values is not None:
            length = request.length
            self._scored_at[slot] = request.prompt_length if length is None else length
        self._flags[slot] = self._wishes(request)
        self._prompts[slot] = request.prompt_length
        self._first[slot] = max(request.prompt_length, tokens)
        self._since[slot] = request.since or 0
        self._top_k[slot] = (tilt and tilt.top_k) or 0
        self._coefficients[slot] = 0.0
        for column, coefficient in (tilt.coefficients if tilt else {}).items():
            self._coefficients[slot, column] = coefficient
        self._weights[slot] = [mix.get(name, 0.0) for name in ("base", *self._members)]
        self._temperatures[slot] = request.temperature
        self._budgets[slot] = request.budget
        self._before[slot] = before

    def _wishes(self, request: WorkerRequest) -> int:
        flags = {
            VALUED: request.values is not None,
            MIXED: bool(request.mix),
            TILTED: request.tilt is not None,
            TOP_K: request.tilt is not None and bool(request.tilt.top_k),
            BOUNDED: request.path is not None and request.budget < np.inf,
            MEASURED: request.path is not None,
            EVERY: request.values is not None and request.length is None,
            LIKELY: request.likelihood is not None and request.since is None,
            TEXT: request.likelihood is not None and request.since is not None,
        }
        runs = {*(request.mix or ()), *request.models}
        for i, name in enumerate(self._members):
            flags[1 << (_MEMBERS + i)] = name in runs
        return sum(flag for flag, asked in flags.items() if asked)

    def begin(
        self,
        index: Ints,
        slots: Ints,
        tokens: Ints,
        draws: Masks | None = None,
        starts: Ints | None = None,
    ) -> None:
        """A step begins: the next pass and its logits are of a batch with these rows.

        Until ``take`` ends it. Any other pass that vLLM makes is no step: it captures a graph,
        measures memory, or keeps other ranks company.

        Args:
            index: rows of the batch, ``[n]``; rows that ask nothing may be among them.
            slots: of their requests.
            tokens: of the prefixes that the step's logits are conditioned on.
            draws: whether the step draws a row's next token; a chunk of a prompt before the last
                does not. None where all count as drawing.
            starts: where each row's tokens begin in the step's, and where the last row's end,
                ``[batch + 1]``; None where the runner does not say.
        """
        flags = self._flags.take(slots)
        asking = flags.nonzero()[0]
        if len(asking) < len(flags):
            index, slots, tokens = index.take(asking), slots.take(asking), tokens.take(asking)
            flags, draws = flags.take(asking), None if draws is None else draws.take(asking)
        self._index, self._slots, self._tokens = index, slots, tokens
        self._asked, self._draws, self.starts = flags, draws, starts
        self._union = _some(flags)
        self._armed = True

    def take(self) -> Step:
        """The rows that this step's logits concern, once a step.

        vLLM also computes logits for prompt logprobs and dummy runs, where rows mean other things:
        those come after the step's own, or without a step, and get none.
        """
        armed, self._armed = self._armed, False
        if not armed:
            return Step(None, None, None)
        return Step(self._due(), self._steered(), self._likely())

    def every_position(self) -> Spans | None:
        """The rows that want V of every prompt prefix; none in a pass that is no step."""
        return self._spans(EVERY, self._values)

    def texts(self) -> Spans | None:
        """The rows that want log p of a text; none in a pass that is no step."""
        return self._spans(TEXT, self._likelihoods)

    @property
    def likely(self) -> bool:
        """Whether some row wants log p of tokens, given or drawn; not in a pass that is no step."""
        return self._armed and bool(self._union & (LIKELY | TEXT))

    def members(self) -> set[str] | None:
        """The members that some row of the batch mixes in, or whose log p it wants.

        None in a pass that is no step: all members run, so that graphs of all are captured.
        """
        if not self._armed:
            return None
        return {n for i, n in enumerate(self._members) if self._union >> (_MEMBERS + i) & 1}

    def _due(self) -> Due | None:
        if not self._union & VALUED:
            return None
        last = self._scored_at.take(self._slots)
        those = last == self._tokens
        if self._union & EVERY:
            # Of each chunk too: one of a token may run in a graph, where nobody asks for all.
            those |= (self._asked & EVERY != 0) & (self._tokens < last)
        due = those.nonzero()[0]
        if not len(due):
            return None
        slots, places = self._slots.take(due), self._values
        return Due(
            index=self._index.take(due), tokens=self._tokens.take(due), places=places.of(slots)
        )

    def _steered(self) -> Steered | None:
        rows = self._drawing(MIXED | TILTED)
        if rows is None:
            return None
        index, slots, tokens, flags = rows
        begins, none = tokens == self._first.take(slots), self._before[:0]
        some = self._union if flags is self._asked else _some(flags)
        return Steered(
            index=index,
            slots=slots,
            tokens=tokens,
            flags=flags,
            top_k=self._top_k.take(slots),
            coefficients=self._coefficients.take(slots, axis=0),
            weights=self._weights.take(slots, axis=0),
            temperatures=self._temperatures.take(slots),
            budgets=self._budgets.take(slots),
            begins=begins,
            before=self._before.take(slots, axis=0) if np.count_nonzero(begins) else none,
            places=self._paths.of(slots),
            some=some,
            alike=some == int(np.bitwise_and.reduce(flags)),
        )

    def _likely(self) -> Likely | None:
        rows = self._drawing(LIKELY)
        if rows is None:
            return None
        index, slots, tokens, _ = rows
        return Likely(
            index=index,
            slots=slots,
            tokens=tokens,
            first=tokens == self._prompts.take(slots),
            requests=self._requests.take(slots),
            places=self._likelihoods.of(slots),
        )

    def _drawing(self, asked: int) -> tuple[Ints, Ints, Ints, Ints] | None:
        """Index, slots, tokens and flags of the rows that ask so and draw; None without any."""
        if not self._union & asked:
            return None
        those = self._asked & asked != 0
        if self._draws is not None:
            those &= self._draws
        rows = those.nonzero()[0]
        every = self._index, self._slots, self._tokens, self._asked
        if len(rows) == len(those):
            return every
        return tuple(part.take(rows) for part in every) if len(rows) else None

    def _spans(self, flag: int, tickets: Tickets) -> Spans | None:
        if not (self._armed and self._union & flag):
            return None
        rows = (self._asked & flag != 0).nonzero()[0]
        slots = self._slots[rows]
        return Spans(
            index=self._index[rows],
            slots=slots,
            tokens=self._tokens[rows],
            since=self._since.take(slots),
            requests=self._requests.take(slots),
            places=tickets.of(slots),
        )

    def _end(self) -> None:
        """No step has begun."""
        self._armed, self._union, self._draws = False, 0, None
        self._index = self._slots = self._tokens = self._asked = np.zeros(0, np.int64)
        self.starts = None


def _some(flags: Ints) -> int:
    """Flags that some rows have."""
    return int(np.bitwise_or.reduce(flags))


ROWS = RowTable()
"""Of the worker's process; the model gives it its size."""
