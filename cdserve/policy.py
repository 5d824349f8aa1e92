"""Alignment policies: the content of a request's ``alignment`` field.

A policy class declares the parameters of its method. ``parse`` validates the field of a request
into one; every error names the field, the value and what is accepted.
"""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
)

from cdserve.errors import PolicyError, safe_key, safe_repr
from cdserve.validation import explain

FIELD = "alignment"
MAX_REWARDS = 64
MAX_SCHEDULE = 1024

Weight = Annotated[float, Field(ge=-1e6, le=1e6)]
Report = Literal["none", "summary", "trace", "live"]


class Limits(Protocol):
    """The operator's limits, as in ``config.Limits``."""

    max_n: int
    max_k: int
    max_candidate_tokens: int
    max_comparisons: int
    allow_negative_weights: bool


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RewardedMethod(_Object):
    """Base of all objects that name a method and rewards."""

    method: str
    rewards: dict[str, Weight] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_REWARDS,
        description="Weight of each reward; the server's default reward with weight 1 if absent.",
    )


class Mixture(_Object):
    """Geometric mixture with weights that sum to 1: multi-objective decoding (arXiv 2406.18853)."""

    kind: Literal["mixture"]
    weights: dict[str, Weight] = Field(
        min_length=1, description="Weight of each model: members and base."
    )
    reference: str | None = Field(
        default=None,
        description="Model that takes 1 minus the sum of the weights; if absent, the weights must "
        "sum to 1.",
    )

    def resolved(self) -> dict[str, float]:
        """Weight of each model."""
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
    """Change of a tuned model's KL penalty from beta to beta': ref + beta / beta' (tuned - ref)."""

    kind: Literal["rescale"]
    tuned: str = Field(description="The tuned model.")
    reference: str = Field(default="base", description="Model that the tuned one was trained from.")
    ratio: float = Field(gt=0, le=1e6, description="beta / beta'; 1 is the tuned model.")

    def resolved(self) -> dict[str, float]:
        """Weight of each model."""
        return _summed({self.reference: 1.0 - self.ratio}, {self.tuned: self.ratio})


class Proxy(_Object):
    """Proxy tuning by a smaller pair: base + alpha (tuned - reference) (arXiv 2401.08565)."""

    kind: Literal["proxy"]
    tuned: str = Field(description="The tuned model.")
    reference: str = Field(description="Model that the tuned one was trained from.")
    alpha: float = Field(
        default=1.0, ge=-1e6, le=1e6, description="Strength of the shift from reference to tuned."
    )

    def resolved(self) -> dict[str, float]:
        """Weight of each model."""
        return _summed({"base": 1.0, self.tuned: self.alpha}, {self.reference: -self.alpha})


def _summed(*parts: Mapping[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, weight in part.items():
            total[name] = total.get(name, 0.0) + weight
    return total


Recipe = Annotated[Mixture | Rescale | Proxy, Field(discriminator="kind")]


class Mix(_Object):
    """Sampling of each token in proportion to the product of p_i(z|s)^w_i over the models.

    Logit mixing: multi-objective decoding (arXiv 2406.18853), proxy tuning (arXiv 2401.08565).
    """

    method: Literal["logit_mixing"]
    weights: dict[str, Weight] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_REWARDS,
        description="Weight of each model: members and base.",
    )
    recipe: Recipe | None = Field(
        default=None, description="Named recipe for the weights; replaces weights."
    )

    def resolved(self) -> dict[str, float]:
        """Weight of each model, without zeros.

        Raises:
            ValueError: neither or both of weights and recipe are given, or all weights are 0.
        """
        if (self.weights is None) == (self.recipe is None):
            raise ValueError("exactly one of weights and recipe is required")
        raw = self.weights if self.recipe is None else self.recipe.resolved()
        weights = {name: weight for name, weight in (raw or {}).items() if weight != 0}
        if not weights:
            raise ValueError("all weights are 0")
        return weights


class Tilt(RewardedMethod):
    """Sampling of each token in proportion to p(z|s) exp(Q(s, z) / beta).

    Q is the weighted sum of the rewards' Q-heads. Token-wise controlled decoding (arXiv 2310.17022,
    equation 2).
    """

    method: Literal["tokenwise_cd"]
    beta: float = Field(
        ge=1e-6, le=1e12, description="Strength of the base model, in reward units per nat."
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="Tilt only the k most likely tokens, by Q minus its mean over them; all if "
        "absent.",
    )
    proposal: Mix | None = Field(
        default=None, description="Distribution p that is tilted; the base model's if absent."
    )


OnReject = Literal["best", "refuse", "error"]


class Guard(_Object):
    """Lowest score of an accepted response, and what happens to a response below it."""

    score: float = Field(ge=-1e12, le=1e12, description="Lowest score of an accepted response.")
    on_reject: OnReject = Field(
        default="best",
        description="Effect of a lower score or of a failed reward. best: the response is returned "
        "all the same, and the report says `accepted: false`. refuse: the operator's refusal text "
        "is returned instead. "
        "error: the request fails with a 422.",
    )


class Policy(RewardedMethod):
    """Base of the policies of all methods."""

    report: Report = Field(
        default="summary",
        description="How much detail the `alignment` report contains. `live` is `trace`, and a "
        "stream of completions or chat completions also shows the candidates under way.",
    )
    deadline_ms: int | None = Field(
        default=None,
        ge=1,
        le=86_400_000,
        description="Deadline in milliseconds from the request's arrival. Generation stops there "
        "and the best candidate so far is the response.",
    )

    scores_prefixes: ClassVar[bool] = False
    """Whether the method scores unfinished responses."""
    whole_responses: ClassVar[bool] = False
    """Whether the method makes one decision, between whole responses."""
    needs_rewards: ClassVar[bool] = True
    """Whether the method requires at least one reward."""

    @property
    def requires_rewards(self) -> bool:
        """Whether this policy requires at least one reward; by default, whether its method does."""
        return self.needs_rewards

    @property
    def answer_extractor(self) -> str | None:
        """Extractor of the answers in finished responses, a name or a regular expression, for
        decoders that read ``Candidate.answer``; None for no answers.
        """
        return None

    @property
    def pairwise_judge(self) -> str | None:
        """Name of the judge for decoders that call ``Proposal.compare``; None for no judge."""
        return None

    @property
    def block_ends(self) -> Sequence[str | int]:
        """Strings and tokens that end a block before its length is reached; none by default."""
        return ()

    @property
    def traced(self) -> bool:
        """Whether the report lists the candidates of every decision."""
        return self.report in ("trace", "live")

    @property
    def width(self) -> int:
        """Most candidates drawn per token of the response, over all draws.

        The cost of a request, which the operator limits, is ``width`` times ``max_tokens``.
        """
        raise NotImplementedError

    def most_tokens(self, max_tokens: int) -> int:
        """Most tokens drawn for a response of ``max_tokens`` tokens, which the operator limits."""
        return self.width * max_tokens

    @property
    def compares_prefixes(self) -> bool:
        """Whether this policy scores unfinished responses; by default, whether its method does."""
        return self.scores_prefixes

    @property
    def final_weights(self) -> Mapping[str, float] | None:
        """Weight of each reward of ended responses; None for those of ``rewards``."""
        return None

    @property
    def values_prefixes(self) -> bool:
        """Whether rewards score unfinished responses; by default, if the policy compares them."""
        return self.compares_prefixes

    @property
    def keeps_several(self) -> bool:
        """Whether the search may continue several prefixes at once."""
        return False

    @property
    def outlook_field(self) -> str | None:
        """Field whose value requires ``Proposal.outlook``; None if none does."""
        return None

    @property
    def concurrent(self) -> int:
        """Most candidates that run or wait for the engine at the same time, for admission."""
        return self.width

    @property
    def proposal_policy(self) -> Tilt | Mix | None:
        """Distribution that tokens are drawn from; None for the base model's."""
        return None

    @property
    def budget(self) -> float | None:
        """Upper limit on the KL bound of a response, in nats; None for no limit."""
        return None

    @property
    def guard(self) -> Guard | None:
        """Lowest score of an accepted response; None to accept all."""
        return None

    def check_limits(self, limits: Limits) -> None:
        """Checks the policy against the operator's limits.

        Raises:
            PolicyError: a limit is exceeded.
        """


class BudgetedPolicy(Policy):
    """Base of the policies that can limit a response's KL bound."""

    kl_budget: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="Upper limit on the KL bound of a response, in nats. Where the limit would be "
        "exceeded, searches draw fewer candidates and tokens are drawn from the base model.",
    )

    @property
    def budget(self) -> float | None:
        return self.kl_budget


class SoftmaxSelection(_Object):
    """Soft selection of candidate i with probability softmax(score / λ)_i."""

    softmax: float = Field(gt=0, description="λ, in units of the score.")


class PessimisticSelection(_Object):
    """Inference-time pessimism: candidate i with probability in proportion to max(0, score_i - l).

    l is the level at which the mean of max(0, score - l) over the candidates is β.
    """

    pessimistic: float = Field(gt=0, le=1e12, description="β, in units of the score.")


class WorstCase(_Object):
    """Parameters of worst-case selection."""

    model_config = ConfigDict(serialize_by_alias=True)

    strength: float = Field(
        alias="lambda",
        gt=0,
        le=1e6,
        description="λ, in inverse units of the weighted rewards; a larger λ gives the best "
        "candidates more weight.",
    )


class WorstCaseSelection(_Object):
    """Robust multi-objective selection, RMOD (arXiv 2503.08796).

    Selects the candidate with the highest Σ w_g V_g, where V_g is reward g times its weight in the
    request, and w is the point of the simplex that minimises log mean exp(λ Σ w_g V_g) over the
    candidates.
    """

    worst_case: WorstCase = Field(
        description="Parameters; the objectives are the request's rewards."
    )


NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
"""Names of extractors; an ``extract`` of any other form is a regular expression."""
MAX_PATTERN = 500
"""Longest regular expression, in characters."""
MAX_EXPANDED = 20_000
"""Largest length of a regular expression times the product of its counts: 60 for ``a{3}b{1,2}``."""


class SoftmaxWeights(_Object):
    """Votes in proportion to exp(score / λ), for scores of any sign; the weights sum to 1."""

    softmax: float = Field(gt=0, description="λ, in units of the score.")


class Vote(_Object):
    """Parameters of a vote."""

    extract: str = Field(
        min_length=1,
        description="How a response's answer is found: `last_number`, `boxed`, the name of one of "
        "the server's `extractors`, or a regular expression whose only group is the answer (its "
        "last match counts).",
    )
    weights: Literal["count", "reward", "posterior"] | SoftmaxWeights = Field(
        default="count",
        description="Weight of a response's vote. count: 1. reward: the score, which must be at "
        "least 0. softmax: softmax(score / λ). posterior: an answer's weight is its posterior "
        "probability, where the score is the probability that the response is right, from 0 to 1.",
    )

    @field_validator("extract")
    @classmethod
    def _is_a_name_or_a_pattern(cls, extract: str) -> str:
        if not NAME.fullmatch(extract):
            _check_pattern(extract)
        return extract


def _check_pattern(pattern: str) -> None:
    """Checks that a client's regular expression has one group and is cheap to compile.

    Raises:
        ValueError: the pattern is too long or too large, invalid, verbose, or has another number
            of groups.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a regular expression may have up to {MAX_PATTERN} characters")
    if re.search(r"\(\?[aiLmsu-]*x", pattern):  # could hide counts in comments
        raise ValueError("a regular expression may not have the flag x")
    # In ``regex``, such a brace matches approximately.
    unquoted = re.sub(r"\[\^?\]?[^]]*\]", "", re.sub(r"(?s)\\.", "", pattern))
    if re.search(r"\{(?!\d*,?\d*\})", unquoted):
        raise ValueError("a brace in a regular expression is a count, or must be escaped: \\{")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # sets that ``regex`` reads differently
            groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError, FutureWarning) as error:
        raise ValueError(f"it is not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(
            f"a regular expression must have exactly one group, the answer; this one has {groups}"
        )
    # The ``regex`` module, which runs the pattern, copies what a count repeats.
    counts = re.findall(r"\d+", "".join(re.findall(r"\{[\d,]*\}", pattern)))
    if len(pattern) * math.prod(max(1, int(count)) for count in counts) > MAX_EXPANDED:
        raise ValueError(
            "the length of a regular expression times the product of its counts may be up to "
            f"{MAX_EXPANDED}"
        )


class VoteSelection(_Object):
    """Majority vote over the answers of whole responses: self-consistency (arXiv 2203.11171).

    Returns the response with the highest score among those with the winning answer.
    """

    vote: Vote = Field(description="Parameters of the vote.")


class MinimumRisk(_Object):
    """Parameters of minimum-Bayes-risk selection."""

    beta: float = Field(
        default=1.0,
        gt=0,
        le=1e12,
        description="β, weight of the mean agreement, in units of the score. Without rewards, "
        "agreement alone decides.",
    )
    similarity: Literal["token_f1"] = Field(
        default="token_f1",
        description="Agreement of two responses. token_f1: F1 of their tokens, with multiplicity.",
    )


class MinimumRiskSelection(_Object):
    """Risk-regularised minimum-Bayes-risk selection (arXiv 2502.12668).

    Returns the response with the highest score + β · (mean agreement with the other responses).
    """

    mbr: MinimumRisk = Field(description="Parameters.")


class Pairwise(_Object):
    """Parameters of pairwise selection."""

    judge: str = Field(description="Name of one of the server's `pairwise_judges`.")
    tournament: Literal["knockout", "borda", "copeland"] = Field(
        default="knockout",
        description="Which pairs are compared, and which response wins. knockout: winners meet in "
        "rounds, n - 1 pairs. borda: all pairs; the largest sum of wins. copeland: all pairs; the "
        "most pairs won.",
    )


class PairwiseSelection(_Object):
    """Selection by a judge that compares two whole responses at a time, in both orders."""

    pairwise: Pairwise = Field(description="Parameters.")


class StopByGain(_Object):
    """Stop once the expected gain of another candidate per expected token is below a price."""

    gain_per_token: float = Field(
        ge=0,
        le=1e6,
        description="Price of a token, in units of the score; 0 never stops.",
    )


class StopAtThreshold(_Object):
    """Stop at the first candidate that is good enough."""

    threshold: float = Field(
        ge=-1e12, le=1e12, description="Score from which a candidate is good enough."
    )


class StopWhenCertain(_Object):
    """Stop a vote once its outcome is certain enough.

    Adaptive-Consistency (arXiv 2305.11860) by count, CGES (arXiv 2511.02603) by posterior.
    """

    certain: float = Field(
        gt=0.5,
        le=1,
        description="Probability that the leading answer is more frequent than the next one, from "
        "which the vote stops; 1: only once no other answer can win. With the weights posterior, "
        "posterior probability of the leading answer.",
    )


Stop = StopByGain | StopAtThreshold | StopWhenCertain


class RaceParameters(_Object):
    """When a response is given up before its end, being unlikely to end as the best."""

    delta: float = Field(
        gt=0,
        lt=0.5,
        description="δ, below 1 / n. An unfinished response is given up once its probability of "
        "the highest final score is below δ. If one response's probability exceeds 1 - δ, all "
        "others are given up.",
    )
    every: int = Field(default=16, ge=1, description="Tokens between comparisons.")


class Gate(_Object):
    """When the first candidates of a block are enough: if one of them is good enough."""

    threshold: float = Field(
        ge=-1e12, le=1e12, description="Score from which a candidate is good enough."
    )
    scouts: int = Field(
        default=2,
        ge=1,
        description="Candidates drawn first; others are drawn only if none of these is good "
        "enough.",
    )
    at_once: int | None = Field(
        default=None,
        ge=1,
        description="Other candidates drawn at the same time, until one is good enough; all of "
        "them if absent.",
    )


Selection = Literal["argmax"] | SoftmaxSelection | PessimisticSelection | WorstCaseSelection
WholeSelection = Selection | VoteSelection | MinimumRiskSelection | PairwiseSelection
"""Selections between whole responses."""


class PolicySampling(_Object):
    """Sampling parameters for requests with temperature 0, whose candidates would be equal."""

    temperature: float = Field(default=1.0, ge=0.01, le=2, description="Sampling temperature.")
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Probability of the smallest set of most likely tokens that is sampled from.",
    )
    top_k: int | None = Field(
        default=None,
        ge=2,
        le=1_000_000,
        description="Number of most likely tokens that are sampled from; all if absent.",
    )
    min_p: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Lowest probability of a sampled token, relative to the most likely token's.",
    )


class SearchPolicy(Policy):
    """Base of the policies of search methods."""

    sampling: PolicySampling | None = Field(
        default=None,
        description="Sampling parameters that replace those of a request with temperature 0 if the "
        "method draws several candidates. If absent, such a request is rejected.",
    )
    proposal: Annotated[Tilt | Mix, Field(discriminator="method")] | None = Field(
        default=None,
        description="Distribution that candidates are drawn from; the base model's if absent.",
    )

    @property
    def proposal_policy(self) -> Tilt | Mix | None:
        return self.proposal


class SelectingPolicy(SearchPolicy, BudgetedPolicy):
    """Base of the policies of search methods with a choice of selection rule."""

    selection: Selection = Field(
        default="argmax", description="Rule that selects a candidate by score."
    )


Count = Annotated[int, Field(ge=1)]
Schedule = Annotated[
    Annotated[Count, Tag("count")]
    | Annotated[list[Count], Field(min_length=1, max_length=MAX_SCHEDULE), Tag("schedule")],
    Discriminator(lambda sent: "schedule" if isinstance(sent, list) else "count"),
]
"""Candidates per block: one number, or a list with one per block, the last repeated."""


def at_most(field: str, value: int, limit: int) -> None:
    """Checks a value against the operator's limit.

    Raises:
        PolicyError: ``value`` is above ``limit``.
    """
    if value > limit:
        detail = f"is {safe_repr(value)}; this server accepts 1 to {limit}"
        raise PolicyError(field, detail, reason="limit")


def parse(
    sent: object,
    methods: Mapping[str, type[Policy]],
    presets: Mapping[str, Policy],
) -> Policy | None:
    """Validates a request's ``alignment`` field.

    Args:
        sent: the field's value: a preset's name, an object, or None.
        methods: policy class of each method.
        presets: the operator's policies by name.

    Returns:
        The policy; None for an absent field and for the method ``none``.

    Raises:
        PolicyError: the field is invalid; the message names the field, the value and what is
            accepted.
    """
    if sent is None:
        return None
    if isinstance(sent, str):
        if sent not in presets:
            raise PolicyError(
                FIELD, f"names the preset {safe_repr(sent)}; this server has {_names(presets)}"
            )
        return presets[sent]
    if not isinstance(sent, dict):
        raise PolicyError(
            FIELD, f"is {safe_repr(sent)}; it takes a preset's name or an object with a method"
        )
    return parse_object(sent, methods, FIELD)


def parse_object(
    sent: Mapping[str, Any], methods: Mapping[str, type[Policy]], field: str
) -> Policy | None:
    """Validates a policy object as ``parse`` does; ``field`` is its path, for error messages."""
    method = sent.get("method")
    if method == "none":
        extra = sorted(set(sent) - {"method"})
        if extra:
            raise PolicyError(
                f"{field}.{safe_key(extra[0])}",
                "is not known to method 'none', which takes nothing else",
            )
        return None
    if not isinstance(method, str) or method not in methods:
        raise PolicyError(
            f"{field}.method",
            f"is {safe_repr(method)}; this server has {_names({'none': 0, **methods})}",
        )
    try:
        return methods[method].model_validate(sent)
    except ValidationError as error:
        raise _policy_error(error, methods[method], sent, field) from error


_ACCEPTED = {
    "selection": (
        "'argmax', {'softmax': λ}, {'pessimistic': β} or {'worst_case': {'lambda': λ}}, with λ and "
        "β > 0; the λ of worst_case is at most 1e6; best_of_n also takes "
        "{'vote': {'extract': ...}}, {'mbr': {...}} and {'pairwise': {'judge': ...}}"
    ),
    "stop": (
        "{'gain_per_token': λ}, with λ from 0 to 1e6 units of the score per token, "
        "{'threshold': τ}, with τ from -1e12 to 1e12, or {'certain': p}, with p above 0.5 and at "
        "most 1"
    ),
}
"""Accepted values of fields whose alternatives are objects."""
_EXPLAINED: Mapping[str, type[BaseModel]] = {
    "vote": VoteSelection,
    "mbr": MinimumRiskSelection,
    "pairwise": PairwiseSelection,
}
"""Alternatives of a selection, by their only key, whose errors name the field inside."""


def _policy_error(
    error: ValidationError, policy: type[Policy], sent: Mapping[str, Any], field: str
) -> PolicyError:
    path, predicate = explain(error, policy, sent)
    field_name = str(path[0]) if path else ""
    if field_name in _ACCEPTED and field_name in policy.model_fields:
        path = path[:1]
        predicate = f"is {safe_repr(sent[field_name])}; it takes {_ACCEPTED[field_name]}"
        if policy.model_fields[field_name].annotation == WholeSelection:
            inner = _selection_error(sent[field_name])
            path, predicate = (path, predicate) if inner is None else ([*path, *inner[0]], inner[1])
    return PolicyError(".".join([field, *(safe_key(str(part)) for part in path)]), predicate)


def _selection_error(sent: object) -> tuple[list[str | int], str] | None:
    """Path inside a selection, and predicate, of an error in one of ``_EXPLAINED``; else None."""
    if not isinstance(sent, dict) or len(sent) != 1 or (key := next(iter(sent))) not in _EXPLAINED:
        return None
    try:
        _EXPLAINED[key].model_validate(sent)
    except ValidationError as error:
        return explain(error, _EXPLAINED[key], sent)
    return None


def _names(names: Mapping[str, object]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
