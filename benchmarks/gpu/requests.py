"""The fixed requests of the check: every kind of policy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .reference import Steering

PROMPT = 'Review of the film "The Glass Harbour":'
REWARDS = {"sentiment": 1.0, "fluent": 0.01, "dpo": 0.1}
TILT = {"method": "tokenwise_cd", "beta": 0.1}
WEIGHTS = {"base": 0.5, "tuned": 0.3, "ref": 0.2}
MIX = {"method": "logit_mixing", "weights": WEIGHTS}
MIXED_TILT = {**TILT, "proposal": MIX}
BUDGET = 4.0
TEXTS = [
    " I love it. The handle has a firm grip.",
    " The cast is dull, and the story goes nowhere. A waste of an evening.",
    "",
]
"""Responses that are scored as they are."""


@dataclass(frozen=True, slots=True)
class Steered:
    """A policy that changes the distribution of each token, or none."""

    policy: Any
    by: Steering
    fields: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0})
    """What else the request says. The greedy answer of it is known."""


STEERED = {
    "plain": Steered(None, Steering()),
    "tilt": Steered(TILT, Steering(beta=0.1)),
    "tilt, top-k": Steered({**TILT, "top_k": 20}, Steering(beta=0.1, top_k=20)),
    "tilt, budget": Steered({**TILT, "kl_budget": BUDGET}, Steering(beta=0.1, budget=BUDGET)),
    "tilt, temperature": Steered(TILT, Steering(beta=0.1), {"temperature": 0.7, "seed": 5}),
    "mix": Steered(MIX, Steering(WEIGHTS)),
    "mix, temperature": Steered(MIX, Steering(WEIGHTS), {"temperature": 1.0, "seed": 6}),
    "proxy": Steered("proxy", Steering({"base": 1.0, "tuned": 1.0, "ref": -1.0})),
    "mix and tilt": Steered(MIXED_TILT, Steering(WEIGHTS, beta=0.1)),
}

SEARCHES: dict[str, dict[str, Any]] = {
    "best_of_n": {"method": "best_of_n", "n": 4},
    "best_of_n, tilted": {"method": "best_of_n", "n": 4, "proposal": TILT},
    "best_of_poisson": {"method": "best_of_poisson", "mu": 2},
    "rejection": {"method": "rejection", "eta": 1.0, "r_max": 1e3, "max_draws": 4},
    "speculative_rejection": {"method": "speculative_rejection", "n": 4, "m": 8},
    "blockwise_cd": {"method": "blockwise_cd", "k": 4, "m": 8},
    "blockwise_cd, mixed": {"method": "blockwise_cd", "k": 4, "m": 8, "proposal": MIX},
    "blockwise_cd, beams": {"method": "blockwise_cd", "k": 2, "m": 8, "beam_width": 2},
    "cards": {"method": "cards", "m": 8, "r_star": 0.5, "max_draws": 8},
}
"""Policies whose answers are among several: each answer's rewards are known."""


def body(policy: Any, **fields: Any) -> dict[str, Any]:
    """A completion's, token ids and log-probabilities included."""
    made = {"prompt": PROMPT, "max_tokens": 32, "logprobs": 0, "return_token_ids": True, **fields}
    return made if policy is None else {**made, "alignment": policy}


def scored(texts: list[str]) -> dict[str, Any]:
    """A score request's, of texts as they are."""
    return {"prompt": PROMPT, "responses": texts, "rewards": REWARDS, "per_token": True}
