"""Fitting a Q-head on cached hidden states."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .heads import QHead
from .losses import masked_squared_error
from .targets import cd_q, soft_expectation
from .training import FitOptions, FitReport, optimise, value_loss

Method = Literal["cdq", "mc"]
"""Targets: "cdq" bootstraps from the expectation over the next token, "mc" takes the reward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transitions:
    """Sampled tokens with the states before them, one finished response after another.

    Attributes:
        states: float [N, d]; the state behind the prefix that each token was sampled from.
        tokens: int64 [N].
        rewards: float32 [N, G], of the response that the token is in, in reward units.
        ended: bool [N]; True at each response's last token, which ended it.
    """

    states: Tensor
    tokens: Tensor
    rewards: Tensor
    ended: Tensor


def fit_q(
    head: QHead,
    train: Transitions,
    held_out: Transitions,
    base: Callable[[Tensor], Tensor],
    method: Method = "cdq",
    options: FitOptions | None = None,
    lm_head: Tensor | None = None,
) -> FitReport:
    """Fit a Q-head in place; keep the weights that best predict the held-out rewards.

    The held-out loss is that of the Monte Carlo targets for both methods: Q* has the least. A soft
    head's expectation and held-out loss are the soft ones. Controlled Decoding (arXiv 2310.17022),
    CD-Q, equation 5.

    Args:
        base: gives p(.|s), [n, |V|], of states [n, d].
        lm_head: the base model's output embedding, for a tied head.
    """

    def loss(rows: Tensor) -> Tensor:
        values = head.of_token(train.states[rows], train.tokens[rows], lm_head)
        rewards = train.rewards[rows]
        if method == "mc":
            return value_loss(head.config, values, rewards)
        following = train.states[(rows + 1).clamp(max=len(train.states) - 1)]
        with torch.no_grad():
            expected = _expected(head, following, base(following), lm_head)
        targets = cd_q(expected, rewards, train.ended[rows])
        return masked_squared_error(values, targets, torch.ones_like(train.ended[rows]))

    def held_out_loss() -> float:
        values = head.of_token(held_out.states, held_out.tokens, lm_head)
        return float(value_loss(head.config, values, held_out.rewards))

    return optimise(head, len(train.tokens), loss, held_out_loss, options or FitOptions())


def _expected(head: QHead, states: Tensor, p: Tensor, lm_head: Tensor | None) -> Tensor:
    if head.config.beta is None:
        return head.expected(states, p, lm_head)
    return soft_expectation(head(states, lm_head), p.log(), head.config.beta)
