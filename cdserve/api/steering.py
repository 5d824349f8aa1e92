"""Resolution of a policy's proposal to the tilt and the mix of a worker request."""

from collections.abc import Mapping

from cdserve.api.signs import check_signs
from cdserve.config import Settings
from cdserve.errors import PolicyError, safe_repr
from cdserve.policy import Mix, Tilt
from cdserve.worker.request import RowTilt, WorkerRequest


def worker_request(
    proposal: Tilt | Mix,
    columns: Mapping[str, int],
    settings: Settings,
    field: str,
    operator: bool,
) -> WorkerRequest:
    """The worker request of a proposal; without tilt and mix for the base model itself.

    Args:
        proposal: the tilt or mix of the policy.
        columns: output of the Q-heads for each reward with a Q-head.
        settings: the operator's settings.
        field: path of the proposal in the request, for error messages.
        operator: whether the policy is the operator's preset, exempt from the clients' limits.

    Raises:
        PolicyError: a reward has no Q-head, a member is unknown, or its weight is not allowed.
    """
    tilt: RowTilt | None = None
    weights: Mapping[str, float] = {}
    mix: Tilt | Mix | None = proposal
    if isinstance(proposal, Tilt):
        if proposal.rewards and not operator:
            check_signs(proposal.rewards, settings, f"{field}.rewards")
        coefficients = _coefficients(proposal, columns, settings.default_reward, field)
        if coefficients:
            tilt = RowTilt(coefficients, proposal.top_k)
        mix, field = proposal.proposal, f"{field}.proposal"
    if isinstance(mix, Mix):
        weights = _mix_weights(mix, settings, field, operator)
    mixes = bool(weights) and weights != {"base": 1.0}
    return WorkerRequest(tilt=tilt, mix=weights if mixes else None)


def _mix_weights(mix: Mix, settings: Settings, field: str, operator: bool) -> dict[str, float]:
    where = f"{field}.{'weights' if mix.recipe is None else 'recipe'}"
    try:
        weights = mix.resolved()
    except ValueError as error:
        raise PolicyError(where, f"is invalid: {error}") from error
    known = ["base", *settings.members]
    for name, weight in weights.items():
        if name not in known:
            raise PolicyError(where, f"names {safe_repr(name)}; this server has {', '.join(known)}")
        if weight < 0 and not (operator or settings.limits.allow_negative_weights):
            raise PolicyError(
                where,
                f"gives {safe_repr(name)} the weight {weight:g}; this server accepts weights of at "
                "least 0 (limits.allow_negative_weights is false)",
                reason="limit",
            )
    return weights


def _coefficients(
    tilt: Tilt, columns: Mapping[str, int], default: str | None, field: str
) -> dict[int, float]:
    """Reward weight divided by beta, by Q-head output; zeros are left out."""
    available = ", ".join(sorted(columns)) or "none"
    weights = tilt.rewards or ({} if default is None else {default: 1.0})
    if not weights:
        raise PolicyError(
            f"{field}.rewards",
            "is missing, and this server has no default reward; rewards with next-token values: "
            f"{available}",
        )
    for name in weights:
        if name not in columns:
            raise PolicyError(
                f"{field}.rewards",
                f"names {safe_repr(name)}, which has no next-token values (no q_head); rewards "
                f"with next-token values: {available}",
                reason="combination",
            )
    coefficients = {columns[name]: weight / tilt.beta for name, weight in weights.items()}
    return {column: value for column, value in coefficients.items() if value != 0}
