"""Logit mixing: each token is drawn from a product of several models' distributions.

The engine mixes in its own step (MOD, arXiv 2406.18853; proxy tuning, arXiv 2401.08565).
"""

from typing import ClassVar, Literal

from cdserve.decoders.registry import decoder
from cdserve.policy import BudgetedPolicy, Mix


class LogitMixingPolicy(Mix, BudgetedPolicy):
    """Draws each token in proportion to the product of the models' p_i(z|s)^w_i."""

    method: Literal["logit_mixing"]

    needs_rewards: ClassVar[bool] = False

    @property
    def width(self) -> int:
        return 1

    @property
    def proposal_policy(self) -> Mix:
        return self


@decoder("logit_mixing")
class LogitMixing:
    """One response, drawn from the mixed distribution."""

    policy = LogitMixingPolicy
    run = None
