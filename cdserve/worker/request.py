"""The contract between server and worker: what one engine request asks for, besides its tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from cdserve.shared_table import Ticket

REQUEST_KEY = "cdserve"
"""Key in ``SamplingParams.extra_args`` that holds the wire form of a ``WorkerRequest``."""


MOST_FIRST_TOKENS = 16
"""Most first tokens per request: their cost in a step grows with the square of their number."""


class FirstTokenDraws(NamedTuple):
    """Draws of the first tokens of requests that may continue this one, from the logits after V.

    Attributes:
        ticket: where the token ids are written, for the prefix of ``value_length`` tokens.
        seeds: the seed of each of those requests, at most ``MOST_FIRST_TOKENS``.
    """

    ticket: Ticket
    seeds: tuple[int, ...]


class DrawPlace(NamedTuple):
    """Place of a request among the requests that are drawn together.

    Attributes:
        draw: id of the draw.
        preceding: number of requests of the draw that are sent before this one.
        size: number of requests of the draw.
    """

    draw: str
    preceding: int
    size: int


@dataclass(frozen=True, slots=True)
class RowTilt:
    """How Q-heads tilt the next-token distribution of a request.

    Attributes:
        coefficients: weight / beta, by Q column.
        top_k: tilt only the k most likely tokens; None for all.
    """

    coefficients: Mapping[int, float]
    top_k: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRequest:
    """The worker's part of one engine request: values, steering and statistics to compute.

    Attributes:
        values: where V of prefixes is written; None to compute no values.
        value_length: length in tokens of the prefix whose V is computed; None for every prefix of
            the prompt.
        value_every: tokens after which V of the next, longer prefix is written, again and again;
            None for a single prefix.
        drawn_values: whether V of each shorter prefix that the request draws is written as well;
            each overwrites the one before it.
        first_tokens: the first tokens that the row of ``value_length`` draws for later requests;
            None for none. Needs ``values``.
        first_drawn: whether the prompt ends with a token of an earlier request's
            ``first_tokens``, by this request's seed.
        response_start: tokens before the response, which is the client's prompt; here a grammar
            begins, and the positions that heads read. None for the engine request's own prompt,
            which in a search also holds the blocks chosen so far.
        tilt: tilt by Q; None for no tilt.
        mix: logit weight by model, ``base`` included; None for the base model's own logits.
        path_kl: where the KL along the request's path is written, in nats; None to write none.
        kl_budget: upper bound on the KL along the path, in nats; needs ``path_kl``. A step that
            would exceed it is not steered. None for no bound.
        token_stats: where statistics of tokens are written (``worker.token_stats``); None to
            compute none.
        token_stats_start: tokens before the first with statistics; None for those drawn.
        token_stats_names: statistics to compute. Their models run even where ``token_stats`` is
            None: later requests may continue from the KV cache that this one fills.
        place: place in a draw whose requests begin in the same step; None for a request that waits
            for no other.
    """

    values: Ticket | None = None
    value_length: int | None = None
    value_every: int | None = None
    drawn_values: bool = False
    first_tokens: FirstTokenDraws | None = None
    first_drawn: bool = False
    response_start: int | None = None
    tilt: RowTilt | None = None
    mix: Mapping[str, float] | None = None
    path_kl: Ticket | None = None
    kl_budget: float | None = None
    token_stats: Ticket | None = None
    token_stats_start: int | None = None
    token_stats_names: tuple[str, ...] = ()
    place: DrawPlace | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a budget without a path, which nothing would measure."""
        if self.kl_budget is not None and self.path_kl is None:
            raise ValueError("kl_budget needs path_kl: the worker measures the KL that it writes")

    @property
    def steered(self) -> bool:
        """Whether tokens are drawn from a distribution other than the base model's."""
        return self.tilt is not None or self.mix is not None

    @property
    def members(self) -> frozenset[str]:
        """Members that run for this request."""
        models = (name.partition(".")[0] for name in self.token_stats_names)
        return frozenset({*(self.mix or ()), *models} - {"base"})

    def to_wire(self) -> dict[str, Any]:
        """The request in JSON types, without fields that have their defaults."""
        tickets = {"values": self.values, "path_kl": self.path_kl, "token_stats": self.token_stats}
        wire: dict[str, Any] = {k: t.to_wire() for k, t in tickets.items() if t is not None}
        if self.tilt is not None:
            by = {str(column): weight for column, weight in self.tilt.coefficients.items()}
            wire["tilt"] = {"coefficients": by, "top_k": self.tilt.top_k}
        if self.mix is not None:
            wire["mix"] = dict(self.mix)
        if self.drawn_values:
            wire["drawn_values"] = True
        if self.first_tokens is not None:
            ticket, seeds = self.first_tokens
            wire["first_tokens"] = [ticket.to_wire(), list(seeds)]
        if self.first_drawn:
            wire["first_drawn"] = True
        if self.token_stats_names:
            wire["token_stats_names"] = list(self.token_stats_names)
        if self.place is not None:
            wire["place"] = list(self.place)
        numbers = {
            "value_length": self.value_length,
            "value_every": self.value_every,
            "response_start": self.response_start,
            "kl_budget": self.kl_budget,
            "token_stats_start": self.token_stats_start,
        }
        return wire | {name: number for name, number in numbers.items() if number is not None}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """The request that ``to_wire`` wrote."""
        tilt, place, first = wire.get("tilt"), wire.get("place"), wire.get("first_tokens")
        return cls(
            values=_ticket(wire.get("values")),
            value_length=wire.get("value_length"),
            value_every=wire.get("value_every"),
            drawn_values=wire.get("drawn_values", False),
            first_tokens=first and FirstTokenDraws(Ticket.from_wire(first[0]), tuple(first[1])),
            first_drawn=wire.get("first_drawn", False),
            response_start=wire.get("response_start"),
            tilt=tilt and _tilt(**tilt),
            mix=wire.get("mix"),
            path_kl=_ticket(wire.get("path_kl")),
            kl_budget=wire.get("kl_budget"),
            token_stats=_ticket(wire.get("token_stats")),
            token_stats_start=wire.get("token_stats_start"),
            token_stats_names=tuple(wire.get("token_stats_names", ())),
            place=place and DrawPlace(*place),
        )

    @classmethod
    def of(cls, extra_args: Mapping[str, Any] | None) -> Self | None:
        """The request in an engine request's ``extra_args``; None if there is none."""
        wire = wire_form(extra_args)
        return None if wire is None else cls.from_wire(wire)

    def added_to(self, extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
        """An engine request's ``extra_args`` with this request in them."""
        return {**(extra_args or {}), REQUEST_KEY: self.to_wire()}


def wire_form(extra_args: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The wire form of the request in ``extra_args``; None if there is none."""
    wire = (extra_args or {}).get(REQUEST_KEY)
    return wire if isinstance(wire, dict) else None


NOTHING = WorkerRequest()
"""The request that asks for nothing."""


def _ticket(wire: list[str | int] | None) -> Ticket | None:
    return None if wire is None else Ticket.from_wire(wire)


def _tilt(coefficients: Mapping[str, float], top_k: int | None) -> RowTilt:
    return RowTilt({int(column): float(by) for column, by in coefficients.items()}, top_k)
