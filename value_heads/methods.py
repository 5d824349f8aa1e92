"""Ways to learn a value: what each fits a head to, along the base model's rollouts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from .base import Base
from .heads import Head, QHead
from .rollouts import Rollouts
from .targets import cd_q, lambda_returns, monte_carlo, soft_expectation

_CHUNK = 1 << 24
"""Numbers of one intermediate tensor, such as the values of all next tokens of some states."""


class Method(Protocol):
    """Gives the target of every prefix that ends with a response token."""

    cut_responses: ClassVar[bool]
    """Whether it also learns from responses that did not end."""

    def check(self, head: Head, base: Base | None) -> None:
        """Refuse a head that cannot be learned so, with a ValueError."""
        ...

    def targets(self, head: Head, data: Rollouts, base: Base | None) -> Tensor:
        """Return float32 [N, G] in reward units; no gradient flows through it."""
        ...


@dataclass(frozen=True, slots=True)
class MonteCarlo:
    """The reward that the response ended with: CD-FUDGE (arXiv 2310.17022, equation 4).

    Of a soft head it makes the soft value, by the loss that belongs to it.
    """

    cut_responses: ClassVar[bool] = False

    def check(self, head: Head, base: Base | None) -> None:
        """Every head can be learned so."""
        _check_tied(head, base)

    def targets(self, head: Head, data: Rollouts, base: Base | None) -> Tensor:
        """Return the rewards."""
        return monte_carlo(data.rewards, data.mask)[data.mask]


@dataclass(frozen=True, slots=True)
class TemporalDifference:
    """TD(lambda): returns that bootstrap from the head's own values (arXiv 2405.06639)."""

    cut_responses: ClassVar[bool] = True
    lam: float = 0.95

    def check(self, head: Head, base: Base | None) -> None:
        """Refuse soft heads: their backup is no average."""
        _check_tied(head, base)
        if head.config.kind == "soft":
            raise ValueError("method td learns values of kind mean, got a head of kind soft")

    def targets(self, head: Head, data: Rollouts, base: Base | None) -> Tensor:
        """Return the lambda-returns along each response."""
        values = data.pad(all_values(head, data, base))
        return lambda_returns(values, data.rewards, data.mask, data.ended, self.lam)[data.mask]


@dataclass(frozen=True, slots=True)
class ControlledQ:
    """CD-Q: the expectation over the token after it (arXiv 2310.17022, equation 5).

    Attributes:
        teacher: a Q-head whose expectation it is; None for the head's own. A value head, which has
            no values of all next tokens, needs one.
    """

    cut_responses: ClassVar[bool] = True
    teacher: QHead | None = None

    def check(self, head: Head, base: Base | None) -> None:
        """Refuse to learn without values of all next tokens, or from those of another kind."""
        source = self.teacher or head
        if not isinstance(source, QHead):
            raise ValueError(
                "method cdq needs values of all next tokens, of a lowrank or tied head or teacher, "
                f"got architecture {source.config.architecture}"
            )
        if base is None:
            raise ValueError("method cdq needs the base model's output layer, got none")
        for name in ("kind", "beta", "rewards"):
            wanted, found = getattr(head.config, name), getattr(source.config, name)
            if found != wanted:
                raise ValueError(f"the teacher's {name} must be the head's, {wanted}, got {found}")

    @torch.no_grad()
    def targets(self, head: Head, data: Rollouts, base: Base | None) -> Tensor:
        """Return the expectation behind every token, and the reward where it ended the response."""
        source = self.teacher or head
        assert isinstance(source, QHead)  # by check()
        assert base is not None
        chunks = _all(data, width=len(base.lm_head))
        expected = [_expected(source, data.states[data.after[rows]], base) for rows in chunks]
        ended = torch.zeros(len(data.tokens), dtype=torch.bool, device=data.tokens.device)
        ended[data.last] = data.ended
        return cd_q(torch.cat(expected), data.rewards[data.owner], ended)


@torch.no_grad()
def all_values(head: Head, data: Rollouts, base: Base | None) -> Tensor:
    """Return the values of all prefixes that end with a response token, float32 [N, G]."""
    lm_head = None if base is None else base.lm_head
    return torch.cat([head.of_rollouts(data, rows, lm_head) for rows in _all(data)])


def _expected(head: QHead, states: Tensor, base: Base) -> Tensor:
    log_p = base.log_p(states)[:, : head.config.vocab_size]
    if head.config.beta is None:
        return head.expected(states, log_p.exp(), base.lm_head)
    return soft_expectation(head(states, base.lm_head), log_p, head.config.beta)


def _all(data: Rollouts, width: int = 1) -> Iterator[Tensor]:
    """All tokens, in chunks that fit when each takes `width` numbers."""
    rows = torch.arange(len(data.tokens), device=data.tokens.device)
    return iter(torch.split(rows, max(1, _CHUNK // max(width, data.states.shape[1]))))


def _check_tied(head: Head, base: Base | None) -> None:
    if head.config.architecture == "tied" and base is None:
        raise ValueError("a tied head needs the base model's output layer, got none")
