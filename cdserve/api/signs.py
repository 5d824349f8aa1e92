"""Signs of the weights that requests give to rewards."""

from collections.abc import Mapping

from cdserve.config import Settings
from cdserve.errors import PolicyError, safe_repr

_ACCEPTED = {
    "positive": "of at least 0; a negative weight would decode away from the reward",
    "negative": "of at most 0: it is a cost",
}


def check_signs(weights: Mapping[str, float], settings: Settings, field: str) -> None:
    """Checks weights of known rewards against the signs that the operator allows.

    Args:
        field: path of the weights in the request, for error messages.

    Raises:
        PolicyError: a weight has a sign that the operator does not allow.
    """
    for name, weight in weights.items():
        sign = settings.sign_of(name) if name in settings.rewards else "any"
        if (weight < 0 and sign == "positive") or (weight > 0 and sign == "negative"):
            raise PolicyError(
                f"{field}.{name}",
                f"is {weight:g}; this server accepts weights of {safe_repr(name)} {_ACCEPTED[sign]}"
                f" (rewards.{name}.sign)",
                reason="limit",
            )
