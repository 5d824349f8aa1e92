"""Methods of learning a value: the targets that a head is fitted to, from the base's rollouts."""

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
"""Elements of one intermediate tensor, such as values of all next tokens of some states."""


class Method(Protocol):
    """A method: targets for every prefix that ends with a response token."""

    cut_responses: ClassVar[bool]
    """Whether the method also learns from responses that did not end."""

    def check(self, head: Head, base: Base | None) -> None:
        """Raise ValueError if the method cannot fit the head."""
        ...

    def targets(self, head: Head, data: Rollouts, base: Base | None) -> Tensor:
        """Return float32 [N, G] in reward units; no gradient flows through it."""
        ...


@dataclass(frozen=True, slots=True)
class MonteCarlo:
    """Monte Carlo: the response's final reward. CD-FUDGE (arXiv 2310.17022, equation 4).

    A soft head learns the soft value from it, by its own loss.
    """

    cut_responses: ClassVar[bool] = False

    def check(self, head: Head, base: Base | None) -> None:
        """Accept every head."""
        check_tied(head, base)

    def targets(self, head: Head, data: Rollouts, base: Base | None) -> Tensor:
        """Return the rewards."""
        return monte_carlo(data.rewards, data.mask)[data.mask]


@dataclass(frozen=True, slots=True)
class TemporalDifference:
    """TD(lambda): returns that bootstrap from the head's own values (arXiv 2405.06639)."""

    cut_responses: ClassVar[bool] = True
    lam: float = 0.95

    def check(self, head: Head, base: Base | None) -> None:
        """Refuse soft heads: their backup is not an average."""
        check_tied(head, base)
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
        teacher: Q-head that gives the expectation; None for the fitted head itself. A value head,
            which has no values of next tokens, needs a teacher.
    """

    cut_responses: ClassVar[bool] = True
    teacher: QHead | None = None

    def check(self, head: Head, base: Base | None) -> None:
        """Refuse heads without values of all next tokens, and teachers of another kind."""
        source = self.teacher or head
        if not isinstance(source, QHead):
            raise ValueError(
                "method cdq needs values of all next tokens, of a lowrank or tied head or teacher, "
                f"got architecture {source.config.architecture}"
            )
        if base is None:
            raise ValueError("method cdq needs the base model's output layer, got none")
        for name in ("kind", "beta", "rewards"):
            own, teachers = getattr(head.config, name), getattr(source.config, name)
            if teachers != own:
                raise ValueError(f"the teacher's {name} must be the head's, {own}, got {teachers}")

    @torch.no_grad()
    def targets(self, head: Head, data: Rollouts, base: Base | None) -> Tensor:
        """Return the expectation after every token, or the reward if the response ended there."""
        source = self.teacher or head
        assert isinstance(source, QHead)  # by check()
        assert base is not None
        chunks = _all(data, width=len(base.lm_head))
        expected = [_expected(source, data, rows, base) for rows in chunks]
        ended = torch.zeros(len(data.tokens), dtype=torch.bool, device=data.tokens.device)
        ended[data.last] = data.ended
        return cd_q(torch.cat(expected), data.rewards[data.owner], ended)


@torch.no_grad()
def all_values(head: Head, data: Rollouts, base: Base | None) -> Tensor:
    """Return the values of all prefixes that end with a response token, float32 [N, G]."""
    lm_head = None if base is None else base.lm_head
    return torch.cat([head.rollout_values(data, rows, lm_head) for rows in _all(data)])


def _expected(head: QHead, data: Rollouts, rows: Tensor, base: Base) -> Tensor:
    """Return the expectation of Q after the tokens at these places, float32 [n, G]."""
    states, position = data.states[data.after[rows]], data.number[rows]
    log_p = base.log_p(states)[:, : head.config.vocab_size]
    if head.config.beta is None:
        return head.expected(states, log_p.exp(), base.lm_head, position)
    return soft_expectation(head(states, base.lm_head, position), log_p, head.config.beta)


def _all(data: Rollouts, width: int = 1) -> Iterator[Tensor]:
    """Yield the places of all tokens in chunks that fit in memory at `width` elements per token."""
    rows = torch.arange(len(data.tokens), device=data.tokens.device)
    return iter(torch.split(rows, max(1, _CHUNK // max(width, data.states.shape[1]))))


def check_tied(head: Head, base: Base | None) -> None:
    """Raise ValueError if a tied head has no base."""
    if head.config.architecture == "tied" and base is None:
        raise ValueError("a tied head needs the base model's output layer, got none")
