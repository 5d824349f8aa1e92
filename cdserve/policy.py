"""The alignment policy: what a client may ask for in the ``alignment`` field.

A policy class names its method's parameters; ``parse`` turns what came over the wire into one, and
every message names the field, the value and what is accepted.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from cdserve.errors import PolicyError, safe_repr, shown_key

FIELD = "alignment"
MAX_REWARDS = 64
MAX_SCHEDULE = 1024

Weight = Annotated[float, Field(ge=-1e6, le=1e6)]
Report = Literal["none", "summary", "trace"]


class Limits(Protocol):
    """The operator's limits, as ``config.Limits`` holds them."""

    max_n: int
    max_k: int
    max_candidate_tokens: int
    allow_negative_weights: bool


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Sent(_Object):
    """What every object that names a method and rewards has."""

    method: str
    rewards: dict[str, Weight] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_REWARDS,
        description="Weight of each reward; the server's default reward if absent.",
    )


class Mixture(_Object):
    """A geometric mixture: weights that sum to 1. Multi-objective decoding (arXiv 2406.18853)."""

    kind: Literal["mixture"]
    weights: dict[str, Weight] = Field(min_length=1, description="Of members, and of base.")
    reference: str | None = Field(
        default=None, description="Takes what the weights lack to 1; if absent they must sum to 1."
    )

    def resolved(self) -> dict[str, float]:
        """Raw weights."""
        rest = 1.0 - math.fsum(self.weights.values())
        if self.reference is not None:
            return _summed(self.weights, {self.reference: rest})
        if abs(rest) > 1e-6:
            raise ValueError(
                f"weights sum to {1.0 - rest:g}; they must sum to 1, or name a reference, which "
                "takes the rest"
            )
        return dict(self.weights)


class Rescale(_Object):
    """A tuned model's KL penalty beta changed to beta': reference + beta / beta' (tuned - it)."""

    kind: Literal["rescale"]
    tuned: str = Field(description="The member that was tuned.")
    reference: str = Field(default="base", description="What it was tuned from.")
    ratio: float = Field(gt=0, le=1e6, description="beta / beta'; 1 is the tuned model.")

    def resolved(self) -> dict[str, float]:
        """Raw weights."""
        return _summed({self.reference: 1.0 - self.ratio}, {self.tuned: self.ratio})


class Proxy(_Object):
    """Proxy tuning: base + alpha (tuned - reference), a smaller pair's shift (arXiv 2401.08565)."""

    kind: Literal["proxy"]
    tuned: str = Field(description="The member that was tuned.")
    reference: str = Field(description="The member that it was tuned from.")
    alpha: float = Field(
        default=1.0, ge=-1e6, le=1e6, description="How much of their difference is added."
    )

    def resolved(self) -> dict[str, float]:
        """Raw weights."""
        return _summed({"base": 1.0, self.tuned: self.alpha}, {self.reference: -self.alpha})


def _summed(*parts: Mapping[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, weight in part.items():
            total[name] = total.get(name, 0.0) + weight
    return total


Recipe = Annotated[Mixture | Rescale | Proxy, Field(discriminator="kind")]


class Mix(_Object):
    """Next tokens drawn in proportion to the product of members' p_i(z|s)^w_i.

    Logit mixing: multi-objective decoding (arXiv 2406.18853), proxy tuning (arXiv 2401.08565).
    """

    method: Literal["logit_mixing"]
    weights: dict[str, Weight] | None = Field(
        default=None, min_length=1, max_length=MAX_REWARDS, description="Of members, and of base."
    )
    recipe: Recipe | None = Field(default=None, description="Weights by a named recipe instead.")

    def resolved(self) -> dict[str, float]:
        """Raw weights, zeros left out.

        Raises:
            ValueError: neither or both of weights and recipe are given, or nothing is left.
        """
        if (self.weights is None) == (self.recipe is None):
            raise ValueError("one of weights and recipe is required, and not both")
        given = self.weights if self.recipe is None else self.recipe.resolved()
        weights = {name: weight for name, weight in (given or {}).items() if weight != 0}
        if not weights:
            raise ValueError("all weights are 0")
        return weights


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
    proposal: Mix | None = Field(default=None, description="p, if not the base model's.")


class Policy(Sent):
    """Base of every method's policy."""

    report: Report = Field(default="summary", description="How much the answer says of its making.")
    deadline_ms: int | None = Field(
        default=None,
        ge=1,
        le=86_400_000,
        description="Milliseconds from the request's arrival after which nothing more is drawn: "
        "the best of what there is then is the answer.",
    )

    scores_prefixes: ClassVar[bool] = False
    """Whether the method needs rewards of unfinished responses."""
    needs_rewards: ClassVar[bool] = True
    """Whether there is nothing to do without one."""

    @property
    def width(self) -> int:
        """Most candidates drawn for a token; a request costs at most this times ``max_tokens``."""
        raise NotImplementedError

    @property
    def proposal_policy(self) -> Tilt | Mix | None:
        """What its tokens are drawn from; None for the base model."""
        return None

    @property
    def budget(self) -> float | None:
        """Nats that the KL bound of a response may not pass; None for no such limit."""
        return None

    def check_limits(self, limits: Limits) -> None:
        """Raises PolicyError where the operator's limits are exceeded."""


class BudgetedPolicy(Policy):
    """Base of the policies that keep a response's KL bound within a budget."""

    kl_budget: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="Nats that the KL bound of a response never passes: searches draw fewer "
        "candidates, and steered tokens are left to the base model, once more would pass it.",
    )

    @property
    def budget(self) -> float | None:
        return self.kl_budget


class SoftmaxSelection(_Object):
    """Soft selection: candidate i with probability softmax(score / λ)."""

    softmax: float = Field(gt=0, description="λ, in units of the score.")


class PessimisticSelection(_Object):
    """Soft selection by inference-time pessimism: candidate i with probability max(0, score_i - l).

    l is where the mean of max(0, score - l) over the candidates is β.
    """

    pessimistic: float = Field(gt=0, le=1e12, description="β, in units of the score.")


class WorstCase(_Object):
    """What worst-case selection takes."""

    model_config = ConfigDict(serialize_by_alias=True)

    strength: float = Field(
        alias="lambda",
        gt=0,
        le=1e6,
        description="λ, per unit of the weighted rewards: how much the best candidates count.",
    )


class WorstCaseSelection(_Object):
    """Robust multi-objective selection, RMOD (arXiv 2503.08796).

    The candidate with the highest Σ w_g V_g, V_g the rewards times the request's weights of them,
    at the w of the simplex that minimises log mean exp(λ Σ w_g V_g) over the candidates.
    """

    worst_case: WorstCase = Field(description="The request's rewards are the objectives.")


Selection = Literal["argmax"] | SoftmaxSelection | PessimisticSelection | WorstCaseSelection


class SearchPolicy(Policy):
    """What the search methods share."""

    proposal: Annotated[Tilt | Mix, Field(discriminator="method")] | None = Field(
        default=None, description="What candidates are drawn from; the base model if absent."
    )

    @property
    def proposal_policy(self) -> Tilt | Mix | None:
        return self.proposal


class SelectingPolicy(SearchPolicy, BudgetedPolicy):
    """What the search methods share that let the client choose the selection rule."""

    selection: Selection = Field(
        default="argmax", description="How one of the candidates is chosen by its score."
    )


Count = Annotated[int, Field(ge=1)]
Schedule = Annotated[
    Annotated[Count, Tag("count")]
    | Annotated[list[Count], Field(min_length=1, max_length=MAX_SCHEDULE), Tag("schedule")],
    Discriminator(lambda sent: "schedule" if isinstance(sent, list) else "count"),
]
"""A number of candidates, or one a block, the last repeated."""


def at_most(field: str, value: int, limit: int) -> None:
    """Raises PolicyError if ``value`` is above the operator's ``limit``."""
    if value > limit:
        raise PolicyError(f"{field} is {safe_repr(value)}; this server accepts 1 to {limit}", field)


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
                f"{FIELD} names the preset {safe_repr(sent)}; this server has {_names(presets)}",
                FIELD,
            )
        return presets[sent]
    if not isinstance(sent, dict):
        raise PolicyError(
            f"{FIELD} is {safe_repr(sent)}; it takes a preset's name or an object with a method",
            FIELD,
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
            f"{field}.method is {safe_repr(method)}; this server has "
            f"{_names({'none': 0, **methods})}",
            f"{field}.method",
        )
    try:
        return methods[method].model_validate(sent)
    except ValidationError as error:
        raise _policy_error(error, methods[method], field) from error


_KINDS: dict[str, type[BaseModel]] = {
    "tokenwise_cd": Tilt,
    "logit_mixing": Mix,
    "mixture": Mixture,
    "rescale": Rescale,
    "proxy": Proxy,
}
"""Objects inside a policy. Where one of several may stand, pydantic puts its kind into the path."""


_HOLDERS = {"proposal": _KINDS, "recipe": _KINDS, "k": ("count", "schedule")}
"""Fields where one of several may stand, with the kinds that may follow them in a path."""


def _policy_error(error: ValidationError, policy: type[Policy], field: str) -> PolicyError:
    first = error.errors(include_url=False)[0]
    path = [shown_key(str(part)) for part in first["loc"]]
    if path[:1] == ["selection"]:
        path = path[:1]  # pydantic goes on with the branches of the union that it tried
    owner: type[BaseModel] = policy
    for part in path[:-1]:
        owner = Mix if part == "proposal" else _KINDS.get(part, owner)
    kinds = [
        i for i, (holder, kind) in enumerate(pairwise(path), 1) if kind in _HOLDERS.get(holder, ())
    ]
    path = [part for i, part in enumerate(path) if i not in kinds]
    where = ".".join([field, *path])
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(owner.model_fields))
        return PolicyError(f"{where} is not known; accepted here: {known}", where)
    if first["type"] == "missing":
        return PolicyError(f"{where} is missing; it is required by this method", where)
    if path and path[0] == "selection":
        return PolicyError(
            f"{where} is {safe_repr(first['input'])}; it takes 'argmax', {{'softmax': λ}}, "
            "{'pessimistic': β} or {'worst_case': {'lambda': λ}}, with λ and β > 0 and, of the "
            "last, at most 1e6",
            where,
        )
    return PolicyError(f"{where} is {safe_repr(first['input'])}: {first['msg']}", where)


def _names(names: Mapping[str, object]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
