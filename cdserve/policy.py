"""The alignment policy: what a client may ask for in the ``alignment`` field.

A policy class names its method's parameters; ``parse`` turns what came over the wire into one, and
every message names the field, the value and what is accepted.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cdserve.errors import PolicyError, shown, shown_key

FIELD = "alignment"
MAX_REWARDS = 64

Weight = Annotated[float, Field(ge=-1e6, le=1e6)]
Report = Literal["none", "summary", "trace"]


class Limits(Protocol):
    """The operator's limits, as ``config.Limits`` holds them."""

    max_n: int
    max_k: int
    max_candidate_tokens: int


class Sent(BaseModel):
    """What every object that names a method has."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    method: str
    rewards: dict[str, Weight] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_REWARDS,
        description="Weight of each reward; the server's default reward if absent.",
    )


class Tilt(Sent):
    """Next tokens drawn in proportion to p(z|s) exp(Q(s, z) / beta), with Q the weighted rewards'.

    Token-wise controlled decoding (arXiv 2310.17022, equation 2).
    """

    method: Literal["tokenwise_cd"]
    beta: float = Field(
        ge=1e-6, le=1e12, description="Strength of the base model, in units of the reward."
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="Tilt the k most likely tokens only, about their mean; all if absent.",
    )


class Policy(Sent):
    """Base of every method's policy."""

    report: Report = Field(default="summary", description="How much the answer says of its making.")

    scores_prefixes: ClassVar[bool] = False
    """Whether the method needs rewards of unfinished responses."""

    @property
    def width(self) -> int:
        """Candidates alive at once; the cost of a request is this times ``max_tokens``."""
        raise NotImplementedError

    @property
    def tilt(self) -> Tilt | None:
        """How the tokens it draws are tilted; None for the base model's own."""
        return None

    def check_limits(self, limits: Limits) -> None:
        """Raises PolicyError where the operator's limits are exceeded."""


class SoftmaxSelection(BaseModel):
    """Soft selection: candidate i with probability softmax(score / λ)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    softmax: float = Field(gt=0, description="λ, in units of the score.")


class SearchPolicy(Policy):
    """What the search methods share."""

    selection: Literal["argmax"] | SoftmaxSelection = Field(
        default="argmax", description="How one of the candidates is chosen by its score."
    )
    proposal: Tilt | None = Field(
        default=None, description="What candidates are drawn from; the base model if absent."
    )

    @property
    def tilt(self) -> Tilt | None:
        return self.proposal


def at_most(field: str, value: int, limit: int) -> None:
    """Raises PolicyError if ``value`` is above the operator's ``limit``."""
    if value > limit:
        raise PolicyError(f"{field} is {shown(value)}; this server accepts 1 to {limit}", field)


def parse(
    sent: object,
    methods: Mapping[str, type[Policy]],
    presets: Mapping[str, Policy],
) -> Policy | None:
    """The policy a request asks for.

    Args:
        sent: the field as it came: a preset's name, an object, or None.
        methods: policy class of each method.
        presets: the operator's policies by name.

    Returns:
        The policy; None for an absent field and for the method ``none``.

    Raises:
        PolicyError: naming the field, the value and what is accepted.
    """
    if sent is None:
        return None
    if isinstance(sent, str):
        if sent not in presets:
            raise PolicyError(
                f"{FIELD} names the preset {shown(sent)}; this server has {_names(presets)}", FIELD
            )
        return presets[sent]
    if not isinstance(sent, dict):
        raise PolicyError(
            f"{FIELD} is {shown(sent)}; it takes a preset's name or an object with a method", FIELD
        )
    return parse_object(sent, methods, FIELD)


def parse_object(
    sent: Mapping[str, Any], methods: Mapping[str, type[Policy]], field: str
) -> Policy | None:
    """As ``parse``, for an object; ``field`` is where it stands, for the messages."""
    method = sent.get("method")
    if method == "none":
        extra = sorted(set(sent) - {"method"})
        if extra:
            where = f"{field}.{shown_key(extra[0])}"
            raise PolicyError(
                f"{where} is not known to method 'none', which takes nothing else", where
            )
        return None
    if not isinstance(method, str) or method not in methods:
        raise PolicyError(
            f"{field}.method is {shown(method)}; this server has {_names({'none': 0, **methods})}",
            f"{field}.method",
        )
    try:
        return methods[method].model_validate(sent)
    except ValidationError as error:
        raise _policy_error(error, methods[method], field) from error


def _policy_error(error: ValidationError, policy: type[Policy], field: str) -> PolicyError:
    first = error.errors(include_url=False)[0]
    path = [shown_key(str(part)) for part in first["loc"]]
    if path[:1] == ["selection"]:
        path = path[:1]  # pydantic goes on with the branches of the union that it tried
    where = ".".join([field, *path])
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(policy.model_fields))
        return PolicyError(f"{where} is not known; accepted here: {known}", where)
    if first["type"] == "missing":
        return PolicyError(f"{where} is missing; it is required by this method", where)
    if path and path[0] == "selection":
        return PolicyError(
            f"{where} is {shown(first['input'])}; it takes 'argmax' or {{'softmax': λ}} with λ > 0",
            where,
        )
    return PolicyError(f"{where} is {shown(first['input'])}: {first['msg']}", where)


def _names(names: Mapping[str, object]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
