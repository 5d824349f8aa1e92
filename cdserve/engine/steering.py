"""What the engine is told of a steered request, and the KL that it reports back."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from cdserve.config import Settings
from cdserve.errors import PolicyError, ScoringError, shown
from cdserve.policy import Mix, Tilt
from cdserve.shared_table import Ticket, ValueTable

_SLOTS, _LENGTH = 16384, 16


def steering(
    proposal: Tilt | Mix,
    columns: Mapping[str, int],
    settings: Settings,
    field: str,
    operator: bool,
) -> dict[str, Any]:
    """What the worker is told: ``tilt`` and ``mix``, as ``plugin.request`` reads them.

    Nothing where the proposal is the base model itself.

    Args:
        columns: which output of the server's Q-heads each reward reads.
        field: where the proposal stands in the request, for messages.
        operator: whether the operator asks for it, in a preset, who needs no leave.

    Raises:
        PolicyError: a reward has no Q-head, or a member cannot be used as asked.
    """
    wire: dict[str, Any] = {}
    mix: Tilt | Mix | None = proposal
    if isinstance(proposal, Tilt):
        by = _coefficients(proposal, columns, settings.default_reward, field)
        if by:
            wire["tilt"] = {"by": by, "top_k": proposal.top_k}
        mix, field = proposal.proposal, f"{field}.proposal"
    if isinstance(mix, Mix):
        weights = _mix(mix, settings, field, operator)
        if weights != {"base": 1.0}:
            wire["mix"] = weights
    return wire


def _mix(mix: Mix, settings: Settings, field: str, operator: bool) -> dict[str, float]:
    where = f"{field}.{'weights' if mix.recipe is None else 'recipe'}"
    try:
        weights = mix.resolved()
    except ValueError as error:
        raise PolicyError(f"{where}: {error}", where) from error
    known = ["base", *settings.members]
    for name, weight in weights.items():
        if name not in known:
            raise PolicyError(
                f"{where} names {shown(name)}; this server has {', '.join(known)}", where
            )
        if weight < 0 and not (operator or settings.limits.allow_negative_weights):
            raise PolicyError(
                f"{where} gives {shown(name)} the weight {weight:g}; this server accepts weights "
                "from 0 up (limits.allow_negative_weights is off)",
                where,
            )
    return weights


def _coefficients(
    tilt: Tilt, columns: Mapping[str, int], default: str | None, field: str
) -> dict[str, float]:
    """weight / beta by Q column, zeros left out."""
    have = ", ".join(sorted(columns)) or "none"
    weights = tilt.rewards or ({} if default is None else {default: 1.0})
    if not weights:
        raise PolicyError(
            f"{field}.rewards is missing, and this server has no default reward; "
            f"rewards with values of next tokens: {have}",
            f"{field}.rewards",
        )
    for name in weights:
        if name not in columns:
            raise PolicyError(
                f"{field}.rewards names {shown(name)}, which has no values of next tokens (no "
                f"q_head); this server has them of {have}",
                f"{field}.rewards",
            )
    by = {str(columns[name]): weight / tilt.beta for name, weight in weights.items()}
    return {column: coefficient for column, coefficient in by.items() if coefficient != 0}


class Paths:
    """The KL of steered requests along their paths, as the worker reports it step by step."""

    def __init__(self) -> None:
        self._table = ValueTable(slots=_SLOTS, columns=2, length=_LENGTH)

    def ticket(self) -> AbstractContextManager[Ticket]:
        """A ticket for one engine request, given back at the end."""
        return self._table.ticket()

    def read(self, ticket: Ticket, length: int) -> tuple[float, int]:
        """KL of the steps that led to the prefix of ``length`` tokens, in nats, and how many of
        them a budget left unsteered.

        Where the engine has drawn many more tokens by now, the prefix's own is no longer there:
        then that of the shortest longer prefix that is, which is no less.

        Raises:
            ScoringError: the engine reported none, or what is no number.
        """
        found = self._table.read_from(ticket, length)
        if found is None:
            raise ScoringError("the engine reported no KL for a request that it steered")
        return _number(float(found[0])), int(found[1])

    def close(self) -> None:
        """Removes the shared table."""
        self._table.close()


def _number(kl: float) -> float:
    if not math.isfinite(kl):
        raise ScoringError(
            f"the KL of a steered request is {kl}: the model, a member or a Q-head gave values "
            "that are no numbers"
        )
    return kl
