"""Token-wise controlled decoding: each token is drawn from a tilted distribution.

The engine tilts in its own step; there is no search. Source: arXiv 2310.17022.
"""

from typing import Literal

from cdserve.decoders.registry import decoder
from cdserve.policy import BudgetedPolicy, Tilt


class TokenwiseCDPolicy(Tilt, BudgetedPolicy):
    """Draws each token in proportion to p(z|s) exp(Q(s, z) / beta)."""

    method: Literal["tokenwise_cd"]

    @property
    def width(self) -> int:
        return 1

    @property
    def proposal_policy(self) -> Tilt:
        return self


@decoder("tokenwise_cd")
class TokenwiseCD:
    """One response, steered token by token."""

    policy = TokenwiseCDPolicy
    run = None
