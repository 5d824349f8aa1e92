"""The requests of the running batch, by slot, and what each row of a step needs.

An adapter to vLLM's model runner (``runner_v1``, ``runner_v2``) assigns requests to slots and,
before each step, names the rows of the batch. In the same step the model asks which rows to score
and steer. A worker process runs one batch, so it has one table.

Requests are stored in arrays with one entry per slot, and gathered by the slots of a step's rows:
the host cost of a step does not grow with its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cdserve.worker.request import WorkerRequest
from cdserve.worker.tickets import Destinations, Ints, Tickets

Floats = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]

MIXED, TILTED = 1, 2
"""Flags of a steered row: logits mixed, logits tilted. The kernels use the same values."""
TOP_K, BOUNDED, MEASURED, VALUED, PROMPT_VALUES = (1 << i for i in range(2, 7))
"""Further flags: tilt of the top k only; KL budget; KL measured; V of some prefix; V of every
prompt prefix."""
DRAWN_STATS, TEXT_STATS, DRAWN_VALUES, REPEATED_VALUES, FIRST_TOKENS = (
    1 << i for i in range(7, 12)
)
"""Further flags: statistics of drawn tokens; of given tokens; V of every drawn prefix; V of a
prefix again and again; first tokens of later requests."""
_MEMBERS = 16
"""Bit of the first member; set where a row needs that member to run."""
_MOST_MEMBERS = 63 - _MEMBERS
_NEVER = -1


@dataclass(slots=True, kw_only=True)
class ValueRows:
    """Rows whose prefix is scored by the value heads in this step."""

    index: Ints
    """Rows of the batch, int64 ``[n]``."""
    tokens: Ints
    """Prefix lengths in tokens, int64 ``[n]``."""
    response_starts: Ints
    """Tokens of each prefix before the response, int64 ``[n]``."""
    destinations: Destinations
    """Where the values are written."""


@dataclass(slots=True, kw_only=True)
class PromptRows:
    """Rows with results for each given token that the step computes; ``[n]`` each."""

    index: Ints
    slots: Ints
    tokens: Ints
    """Length of each row's prefix at the end of the step."""
    response_starts: Ints
    """Tokens before the response."""
    token_stats_start: Ints
    """Tokens before the first with statistics."""
    requests: Ints
    """Unique number of each row's request."""
    destinations: Destinations
    wanted: Masks
    """Statistics that each row needs, ``[n, statistics]``."""


@dataclass(slots=True, kw_only=True)
class SteeredRows:
    """Rows drawn from a distribution other than the base model's; ``[n]`` each."""

    index: Ints
    slots: Ints
    tokens: Ints
    response_starts: Ints
    """Tokens before the response."""
    flags: Ints
    """``MIXED``, ``TILTED``, ``TOP_K``, ``BOUNDED``, ``MEASURED``."""
    top_k: Ints
    """0 for all tokens."""
    coefficients: Floats
    """weight / beta of each Q column, ``[n, columns]``."""
    weights: Floats
    """Logit weights of the base and each member, ``[n, 1 + members]``."""
    temperatures: Floats
    budgets: Floats
    """In nats; infinite for none."""
    begins: Masks
    """Whether this is the first token drawn since the row's request took its slot."""
    carried: npt.NDArray[np.float64]
    """KL in nats and unsteered steps from before the request was preempted, ``[n, 2]``; ``[0, 2]``
    where no row begins."""
    destinations: Destinations
    """Where the KL along the path is written."""
    any_flags: int
    """Flags set in at least one row."""
    uniform: bool
    """Whether all rows have the same flags."""

    def of(self, rows: Ints | slice) -> "SteeredRows":
        """The rows at these indices."""
        flags = self.flags[rows]
        return SteeredRows(
            index=self.index[rows],
            slots=self.slots[rows],
            tokens=self.tokens[rows],
            response_starts=self.response_starts[rows],
            flags=flags,
            top_k=self.top_k[rows],
            coefficients=self.coefficients[rows],
            weights=self.weights[rows],
            temperatures=self.temperatures[rows],
            budgets=self.budgets[rows],
            begins=self.begins[rows],
            carried=self.carried[rows] if len(self.carried) else self.carried,
            destinations=self.destinations.of(rows),
            any_flags=_any_flags(flags),
            uniform=self.uniform,
        )


@dataclass(slots=True, kw_only=True)
class FirstTokenRows:
    """Rows that draw first tokens of later requests; ``[n]`` each."""

    index: Ints
    tokens: Ints
    """Prefix lengths in tokens."""
    seeds: Sequence[Sequence[int]]
    """Seeds of the later requests of each row."""
    temperatures: Floats
    truncations: npt.NDArray[np.float64]
    """top_k, top_p and min_p, ``[n, 3]``."""
    destinations: Destinations


class Truncation(NamedTuple):
    """A request's truncation of the next-token distribution; the defaults truncate nothing."""

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


WHOLE = Truncation()
"""No truncation."""


@dataclass(slots=True, kw_only=True)
class StatRows:
    """Rows with statistics of their last token; ``[n]`` each."""

    index: Ints
    slots: Ints
    tokens: Ints
    since: Ints
    """Tokens before the first with statistics; 0 where tokens are drawn."""
    requests: Ints
    """Unique number of each row's request."""
    destinations: Destinations
    wanted: Masks
    """Statistics that some row needs, ``[statistics]``."""


class Step(NamedTuple):
    """The rows of a step by what they need; None where no row needs it."""

    values: ValueRows | None
    steered: SteeredRows | None
    token_stats: StatRows | None
    first_tokens: FirstTokenRows | None = None


class RowTable:
    """The requests of the batch, by slot, and the rows of the running step.

    Args:
        slots: maximum number of requests in the batch.
        columns: number of outputs of all Q-heads.
        members: names of the members.
        statistics: names of the statistics of tokens.

    Raises:
        ValueError: as ``resize`` does.
    """

    def __init__(
        self,
        slots: int = 0,
        columns: int = 0,
        members: Sequence[str] = (),
        statistics: Sequence[str] = (),
    ) -> None:
        self.resize(slots, columns, members, statistics)

    def resize(
        self, slots: int, columns: int, members: Sequence[str], statistics: Sequence[str] = ()
    ) -> None:
        """Empties the table and sets its size.

        Raises:
            ValueError: there are more than 47 members.
        """
        if len(members) > _MOST_MEMBERS:
            raise ValueError(f"there are {len(members)} members; at most {_MOST_MEMBERS} can run")
        self._members = tuple(members)
        self._statistics = tuple(statistics)
        self._assigned = 0
        self._requests = np.zeros(slots, np.int64)
        self._flags = np.zeros(slots, np.int64)
        self._scored_at = np.full(slots, _NEVER, np.int64)
        self._scored_every = np.zeros(slots, np.int64)
        self._first = np.zeros(slots, np.int64)
        self._prompts = np.zeros(slots, np.int64)
        self._response_starts = np.zeros(slots, np.int64)
        self._token_stats_start = np.zeros(slots, np.int64)
        self._wanted = np.zeros((slots, len(statistics)), np.bool_)
        self._top_k = np.zeros(slots, np.int64)
        self._coefficients = np.zeros((slots, columns), np.float32)
        self._weights = np.zeros((slots, 1 + len(members)), np.float32)
        self._temperatures = np.ones(slots, np.float32)
        self._budgets = np.full(slots, np.inf, np.float32)
        self._carried = np.zeros((slots, 2))
        self._truncations = np.zeros((slots, len(Truncation._fields)))
        self._seeds: list[Sequence[int]] = [()] * slots
        self._tickets = [Tickets(slots) for _ in range(4)]
        self._values, self._path_kl, self._token_stats, self._first_tokens = self._tickets
        self.starts: Ints | None = None
        self._end()

    def assign(
        self,
        slot: int,
        request: WorkerRequest,
        *,
        prompt_length: int,
        temperature: float = 1.0,
        truncation: Truncation = WHOLE,
        tokens: int = 0,
        carried: tuple[float, int] = (0.0, 0),
    ) -> None:
        """Puts a request into a slot.

        Args:
            prompt_length: length of the prompt in tokens.
            temperature: sampling temperature of the request.
            truncation: its truncation, which first tokens need.
            tokens: prompt and drawn tokens so far; more than the prompt after a preemption.
            carried: KL of the path so far in nats, and steps that the budget left unsteered.
        """
        self._renew(slot)
        tilt, mix, length = request.tilt, request.mix or {}, request.value_length
        if request.values is not None:
            self._scored_at[slot] = prompt_length if length is None else length
            self._scored_every[slot] = request.value_every or 0
        self._flags[slot] = self._flags_of(request)
        self._prompts[slot] = prompt_length
        start = request.response_start
        self._response_starts[slot] = prompt_length if start is None else start
        self._first[slot] = max(prompt_length, tokens)
        self._token_stats_start[slot] = request.token_stats_start or 0
        self._wanted[slot] = [name in request.token_stats_names for name in self._statistics]
        self._top_k[slot] = (tilt and tilt.top_k) or 0
        self._coefficients[slot] = 0.0
        for column, coefficient in (tilt.coefficients if tilt else {}).items():
            self._coefficients[slot, column] = coefficient
        self._weights[slot] = [mix.get(name, 0.0) for name in ("base", *self._members)]
        self._temperatures[slot] = temperature
        self._budgets[slot] = np.inf if request.kl_budget is None else request.kl_budget
        self._carried[slot] = carried
        self._values.assign(slot, request.values)
        self._path_kl.assign(slot, request.path_kl)
        self._token_stats.assign(slot, request.token_stats)
        self._truncations[slot] = truncation
        first = request.first_tokens
        self._seeds[slot] = () if first is None else first.seeds
        self._first_tokens.assign(slot, first and first.ticket)

    def clear(self, slot: int) -> None:
        """Empties a slot; a request without a ``WorkerRequest`` may take it."""
        self._renew(slot)
        for tickets in self._tickets:
            tickets.assign(slot, None)

    def _renew(self, slot: int) -> None:
        """Gives a slot a new request number, and nothing to do."""
        self._assigned += 1
        self._requests[slot] = self._assigned
        self._flags[slot] = 0
        self._scored_at[slot] = _NEVER

    def _flags_of(self, request: WorkerRequest) -> int:
        bounded = request.kl_budget is not None and request.kl_budget < np.inf
        flags = {
            VALUED: request.values is not None,
            MIXED: bool(request.mix),
            TILTED: request.tilt is not None,
            TOP_K: request.tilt is not None and bool(request.tilt.top_k),
            BOUNDED: request.path_kl is not None and bounded,
            MEASURED: request.path_kl is not None,
            PROMPT_VALUES: request.values is not None and request.value_length is None,
            DRAWN_VALUES: request.values is not None and request.drawn_values,
            REPEATED_VALUES: request.values is not None and request.value_every is not None,
            FIRST_TOKENS: request.first_tokens is not None,
            DRAWN_STATS: request.token_stats is not None and request.token_stats_start is None,
            TEXT_STATS: request.token_stats is not None and request.token_stats_start is not None,
        }
        for i, name in enumerate(self._members):
            flags[1 << (_MEMBERS + i)] = name in request.members
        return sum(flag for flag, asked in flags.items() if asked)

    def begin_step(
        self,
        index: Ints,
        slots: Ints,
        tokens: Ints,
        draws: Masks | None = None,
        starts: Ints | None = None,
    ) -> None:
        """Begins a step: the next forward pass and its logits belong to a batch with these rows.

        ``take_step`` ends the step. vLLM also runs passes that are not steps: to capture a graph,
        to measure memory, or as a dummy batch while other ranks work.

        Args:
            index: rows of the batch, ``[n]``; rows without a ``WorkerRequest`` may be among them.
            slots: slots of their requests, ``[n]``.
            tokens: lengths of the prefixes that the step's logits are conditioned on, ``[n]``.
            draws: whether the step draws the next token of a row, ``[n]``: a chunk of a prompt that
                is not the last draws none. None if every row draws.
            starts: where each row's tokens begin among the step's tokens, and where those of the
                last row end, ``[batch + 1]``; None where the runner does not say.
        """
        flags = self._flags.take(slots)
        asking = flags.nonzero()[0]
        if len(asking) < len(flags):
            index, slots, tokens = index.take(asking), slots.take(asking), tokens.take(asking)
            flags, draws = flags.take(asking), None if draws is None else draws.take(asking)
        self._index, self._slots, self._tokens = index, slots, tokens
        self._asked, self._draws, self.starts = flags, draws, starts
        self._union = _any_flags(flags)
        self._armed, self._texts_read = True, False

    def take_step(self) -> Step:
        """Returns the rows of this step's logits, and ends the step.

        vLLM also computes logits for prompt logprobs and dummy runs, after the step's own or
        without a step. Those get an empty ``Step``.
        """
        armed, self._armed = self._armed, False
        if not armed:
            return Step(None, None, None)
        return Step(
            self._value_rows(), self._steered_rows(), self._stat_rows(), self._first_token_rows()
        )

    def prompt_value_rows(self) -> PromptRows | None:
        """Rows that need V of every prompt prefix; None outside a step."""
        return self._prompt_rows(PROMPT_VALUES, self._values)

    def text_stat_rows(self) -> PromptRows | None:
        """Rows with statistics of given tokens; None outside a step.

        A CUDA graph of the whole forward pass does not call this. Its rows have one token each, so
        ``take_step`` then returns these rows among those that draw.
        """
        self._texts_read = True
        return self._prompt_rows(TEXT_STATS, self._token_stats)

    @property
    def reads_tokens(self) -> bool:
        """Whether some row has statistics of tokens, given or drawn; False outside a step."""
        return self._armed and bool(self._union & (DRAWN_STATS | TEXT_STATS))

    def members(self) -> set[str] | None:
        """The members that rows of this step need.

        None outside a step: all members run, so that graph capture includes each of them.
        """
        if not self._armed:
            return None
        return {n for i, n in enumerate(self._members) if self._union >> (_MEMBERS + i) & 1}

    def _value_rows(self) -> ValueRows | None:
        if not self._union & VALUED:
            return None
        last = self._scored_at.take(self._slots)
        chosen = last == self._tokens
        if self._union & PROMPT_VALUES:
            # Each chunk too: a one-token chunk may run in a CUDA graph, which does not call
            # ``prompt_value_rows``.
            chosen |= (self._asked & PROMPT_VALUES != 0) & (self._tokens < last)
        if self._union & DRAWN_VALUES:
            drawn = (self._prompts.take(self._slots) < self._tokens) & (self._tokens < last)
            chosen |= (self._asked & DRAWN_VALUES != 0) & drawn
        if self._union & REPEATED_VALUES:
            every = np.maximum(self._scored_every.take(self._slots), 1)
            again = (last < self._tokens) & ((self._tokens - last) % every == 0)
            chosen |= (self._asked & REPEATED_VALUES != 0) & again
        rows = chosen.nonzero()[0]
        if not len(rows):
            return None
        slots = self._slots.take(rows)
        return ValueRows(
            index=self._index.take(rows),
            tokens=self._tokens.take(rows),
            response_starts=self._response_starts.take(slots),
            destinations=self._values.of(slots),
        )

    def _steered_rows(self) -> SteeredRows | None:
        rows = self._drawing(MIXED | TILTED)
        if rows is None:
            return None
        index, slots, tokens, flags = rows
        begins, none = tokens == self._first.take(slots), self._carried[:0]
        any_flags = self._union if flags is self._asked else _any_flags(flags)
        return SteeredRows(
            index=index,
            slots=slots,
            tokens=tokens,
            response_starts=self._response_starts.take(slots),
            flags=flags,
            top_k=self._top_k.take(slots),
            coefficients=self._coefficients.take(slots, axis=0),
            weights=self._weights.take(slots, axis=0),
            temperatures=self._temperatures.take(slots),
            budgets=self._budgets.take(slots),
            begins=begins,
            carried=self._carried.take(slots, axis=0) if np.count_nonzero(begins) else none,
            destinations=self._path_kl.of(slots),
            any_flags=any_flags,
            uniform=any_flags == int(np.bitwise_and.reduce(flags)),
        )

    def _stat_rows(self) -> StatRows | None:
        rows = self._drawing(DRAWN_STATS, 0 if self._texts_read else TEXT_STATS)
        if rows is None:
            return None
        index, slots, tokens, _ = rows
        return StatRows(
            index=index,
            slots=slots,
            tokens=tokens,
            since=self._token_stats_start.take(slots),
            requests=self._requests.take(slots),
            destinations=self._token_stats.of(slots),
            wanted=np.logical_or.reduce(self._wanted.take(slots, axis=0), axis=0),
        )

    def _first_token_rows(self) -> FirstTokenRows | None:
        if not self._union & FIRST_TOKENS:
            return None
        at_value = self._scored_at.take(self._slots) == self._tokens
        rows = (at_value & (self._asked & FIRST_TOKENS != 0)).nonzero()[0]
        if not len(rows):
            return None
        slots = self._slots.take(rows)
        return FirstTokenRows(
            index=self._index.take(rows),
            tokens=self._tokens.take(rows),
            seeds=[self._seeds[slot] for slot in slots],
            temperatures=self._temperatures.take(slots),
            truncations=self._truncations.take(slots, axis=0),
            destinations=self._first_tokens.of(slots),
        )

    def _drawing(self, asked: int, given: int = 0) -> tuple[Ints, Ints, Ints, Ints] | None:
        """Index, slots, tokens and flags of rows; None without any.

        Args:
            asked: flags of rows that count if they draw.
            given: flags of rows that count in any case.
        """
        if not self._union & (asked | given):
            return None
        chosen = self._asked & asked != 0
        if self._draws is not None:
            chosen &= self._draws
        if given:
            chosen |= self._asked & given != 0
        rows = chosen.nonzero()[0]
        everything = self._index, self._slots, self._tokens, self._asked
        if len(rows) == len(chosen):
            return everything
        return tuple(part.take(rows) for part in everything) if len(rows) else None

    def _prompt_rows(self, flag: int, tickets: Tickets) -> PromptRows | None:
        if not (self._armed and self._union & flag):
            return None
        rows = (self._asked & flag != 0).nonzero()[0]
        slots = self._slots[rows]
        return PromptRows(
            index=self._index[rows],
            slots=slots,
            tokens=self._tokens[rows],
            response_starts=self._response_starts.take(slots),
            token_stats_start=self._token_stats_start.take(slots),
            requests=self._requests.take(slots),
            destinations=tickets.of(slots),
            wanted=self._wanted.take(slots, axis=0),
        )

    def _end(self) -> None:
        """Returns to the state in which no step is running."""
        self._armed, self._union, self._draws = False, 0, None
        self._texts_read = False
        self._index = self._slots = self._tokens = self._asked = np.zeros(0, np.int64)
        self.starts = None


def _any_flags(flags: Ints) -> int:
    """Flags set in at least one row."""
    return int(np.bitwise_or.reduce(flags))


ROWS = RowTable()
"""The table of this worker process; the model sets its size."""
