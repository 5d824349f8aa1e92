"""The server's settings: one YAML file, environment variables ``CDSERVE_*``, and flags.

A flag (``--set limits.max_n=8``) wins over the environment (``CDSERVE_LIMITS__MAX_N=8``), which
wins over the file. Unknown keys are errors.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from cdserve.errors import ConfigError, safe_repr
from cdserve.validation import explain

_PREFIX = "CDSERVE_"
BUILT_IN_EXTRACTORS = ("last_number", "boxed")
"""Extractors that every server has."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Standardisation(_Section):
    """Statistics of a reward, which enters the score as (reward - mean) / std."""

    mean: float = Field(description="Mean, in units of the reward.")
    std: float = Field(gt=0, description="Standard deviation, in units of the reward.")


Sign = Literal["positive", "negative", "any"]
"""Weights that requests may give a reward: at least 0, at most 0 (a cost), or any."""


class _Kind(_Section):
    sign: Sign | None = Field(
        default=None,
        description="Weights that requests may give the reward: positive (at least 0), negative "
        "(at most 0: a cost) or any. If null, any if limits.allow_negative_rewards, else positive.",
    )

    public: ClassVar[frozenset[str]] = frozenset({"kind", "sign"})
    """Fields that ``GET /v1/alignment`` shows: no path, model, address, callable or rubric."""

    @property
    def models(self) -> tuple[str, ...]:
        """Models whose log-likelihoods the reward reads: ``base`` or members."""
        return ()

    @property
    def token_stats(self) -> tuple[str, ...]:
        """Statistics of the response's tokens that the reward reads (``worker.token_stats``)."""
        return self.models


class _Reward(_Kind):
    standardise: Standardisation | None = Field(
        default=None,
        description="Statistics to weigh the reward as (reward - mean) / std; the report has the "
        "raw reward.",
    )

    public: ClassVar[frozenset[str]] = _Kind.public | {"standardise"}


class Fallible(_Reward):
    """Settings of every reward that can fail."""

    on_failure: Literal["error", "skip", "base"] = Field(
        default="error",
        description="Effect of a failure. error: the request fails. skip: the other rewards "
        "decide. base: the first candidate, a draw from the proposal, is selected.",
    )
    timeout: float = Field(
        default=30, gt=0, description="Seconds for scoring the candidates of one decision."
    )

    public: ClassVar[frozenset[str]] = _Reward.public | {"on_failure", "timeout"}


class ValueHeadReward(_Kind):
    """Output of a value head, computed inside the engine."""

    kind: Literal["value_head"]
    path: str = Field(description="Folder of a head that value_heads saved.")
    q_head: str | None = Field(
        default=None, description="Folder of a Q-head for the same reward, for tokenwise_cd."
    )
    output: str | None = Field(
        default=None, description="Name of the head's output; required if the head has several."
    )
    force: bool = Field(
        default=False,
        description="Whether to accept a head that was trained on a different base model.",
    )
    standardise: Standardisation | bool = Field(
        default=False, description="Statistics, or true for the head's own."
    )

    public: ClassVar[frozenset[str]] = _Kind.public | {"output", "standardise"}


class LengthReward(_Reward):
    """Closeness of the response's length to a target, in tokens."""

    kind: Literal["length"]
    target: int = Field(gt=0, description="Target length in tokens.")
    tolerance: int = Field(
        default=0, ge=0, description="Deviation from the target, in tokens, without penalty."
    )

    public: ClassVar[frozenset[str]] = _Reward.public | {"target", "tolerance"}


class RegexReward(_Reward):
    """1 if a finished response matches a pattern, else 0."""

    kind: Literal["regex"]
    pattern: str = Field(
        description="Python regular expression; it may match anywhere in the response."
    )

    public: ClassVar[frozenset[str]] = _Reward.public | {"pattern"}

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"it is not a regular expression: {error}") from error
        return pattern


class JsonValidReward(_Reward):
    """1 if a finished response is one JSON value, else 0."""

    kind: Literal["json_valid"]


class LogLikReward(_Reward):
    """log p of the response under a member or the base model, in nats, computed in the engine."""

    kind: Literal["loglik"]
    member: str = Field(
        default="base", description="Name of a member, or base for the served model."
    )

    per_token: bool = Field(default=False, description="Whether to divide by the number of tokens.")

    public: ClassVar[frozenset[str]] = _Reward.public | {"member", "per_token"}

    @property
    def models(self) -> tuple[str, ...]:
        return (self.member,)


class ConfidenceReward(_Reward):
    """Confidence of the base model in the response's tokens; needs no head and no other model.

    It is computed in the engine from the base model's own next-token distributions. A higher number
    is more confident.
    """

    kind: Literal["confidence"]
    of: Literal["self_certainty", "logprob", "entropy", "top_k_logprob"] = Field(
        default="self_certainty",
        description="Confidence of a token, in nats. self_certainty: KL(U || p), with U uniform "
        "over the vocabulary. logprob: log p of the token drawn. entropy: the negative entropy of "
        "p. top_k_logprob: minus the mean of log p over the top_k most likely tokens.",
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="Most likely tokens that top_k_logprob averages over; 20 if null. Other "
        "confidences do not have it.",
    )
    window: int | None = Field(
        default=None,
        ge=1,
        description="Tokens per window that slides over the response; a shorter response is one "
        "window. If null, the whole response.",
    )
    aggregate: Literal["mean", "min", "tail", "bottom_10"] = Field(
        default="mean",
        validate_default=True,
        description="Aggregate of the means of all windows: their mean, the lowest (min), the last "
        "(tail), or the mean of the lowest tenth (bottom_10). All but mean require window.",
    )

    public: ClassVar[frozenset[str]] = _Reward.public | {"of", "top_k", "window", "aggregate"}

    @field_validator("top_k")
    @classmethod
    def _top_k_fits_the_confidence(cls, top_k: int | None, info: ValidationInfo) -> int | None:
        if top_k is not None and info.data.get("of", "top_k_logprob") != "top_k_logprob":
            raise ValueError(f"of {info.data['of']} does not have it")
        return top_k

    @field_validator("aggregate")
    @classmethod
    def _windows_are_aggregated(cls, aggregate: str, info: ValidationInfo) -> str:
        if aggregate != "mean" and info.data.get("window", 1) is None:
            raise ValueError("it requires window")
        return aggregate

    @property
    def most_likely(self) -> int:
        """Number of most likely tokens whose log-probabilities are read; 0 for none."""
        return (self.top_k or 20) if self.of == "top_k_logprob" else 0

    @property
    def statistic(self) -> str:
        """The confidence of a token, as ``worker.token_stats`` names it."""
        names = {
            "self_certainty": "base.self_certainty",
            "logprob": "base",
            "entropy": "base.negative_entropy",
            "top_k_logprob": f"base.top_{self.most_likely}",
        }
        return names[self.of]

    @property
    def token_stats(self) -> tuple[str, ...]:
        return (self.statistic,)


class LogRatioReward(_Reward):
    """beta log(p_tuned / p_reference) of the response, computed in the engine."""

    kind: Literal["log_ratio"]
    tuned: str = Field(description="Name of the tuned model: a member or base.")
    reference: str = Field(
        default="base", description="Name of the reference model: a member or base."
    )
    beta: float = Field(default=1.0, gt=0, description="Reward units per nat.")

    public: ClassVar[frozenset[str]] = _Reward.public | {"tuned", "reference", "beta"}

    @property
    def models(self) -> tuple[str, ...]:
        return (self.tuned, self.reference)


class PythonReward(Fallible):
    """A Python function ``(prompt, response) -> float`` from any importable module."""

    kind: Literal["python"]
    callable: str = Field(
        pattern=r"^\w+(\.\w+)*:\w+$", description="Function to import, as module:function."
    )
    prefixes: bool = Field(
        default=False,
        description="Whether to score unfinished responses, by calling the function with the text "
        "so far.",
    )

    public: ClassVar[frozenset[str]] = Fallible.public | {"prefixes"}


class _ChatModel(_Section):
    """A model behind an OpenAI-compatible chat endpoint."""

    url: str = Field(pattern=r"^https?://", description="Base URL of the endpoint, including /v1.")
    model: str = Field(description="Model id at the endpoint.")
    api_key_env: str | None = Field(
        default=None, description="Environment variable that holds the endpoint's API key."
    )
    concurrency: int = Field(
        default=8, ge=1, description="Maximum concurrent questions, across requests."
    )
    retries: int = Field(default=2, ge=0, description="Retries after a failed attempt.")
    max_tokens: int = Field(
        default=512, ge=1, description="Maximum length of the judge's answer, in tokens."
    )


class JudgeReward(_ChatModel, Fallible):
    """Grade of a finished response by a model behind an OpenAI-compatible endpoint."""

    kind: Literal["judge"]
    rubric: str = Field(
        description="Question to the judge; {prompt} and {response} are replaced by the texts."
    )
    scale: tuple[float, float] = Field(default=(1, 10), description="Lowest and highest grade.")

    public: ClassVar[frozenset[str]] = Fallible.public | {
        *("scale", "concurrency", "retries", "max_tokens"),
    }

    @field_validator("rubric")
    @classmethod
    def _rubric_has_response(cls, rubric: str) -> str:
        if "{response}" not in rubric:
            raise ValueError("it must contain {response}")
        return rubric

    @field_validator("scale")
    @classmethod
    def _scale_increases(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not scale[0] < scale[1]:
            raise ValueError("the first number must be below the second")
        return scale


class Steps(_Section):
    """Step-by-step scoring by a process reward model."""

    marker: str = Field(
        description="Token placed after each step; the model's output there is the step's reward."
    )
    separator: str = Field(default="\n\n", min_length=1, description="Text that ends a step.")
    aggregate: Literal["last", "min", "mean", "product"] = Field(
        default="min", description="How the rewards of the steps are aggregated."
    )
    probability: bool = Field(
        default=True,
        description="Whether a step's reward is the label's probability (softmax over the labels, "
        "or sigmoid of a single one) instead of the raw output.",
    )


class RewardModelReward(Fallible):
    """Output of a sequence-classification model, served by a separate vLLM engine."""

    kind: Literal["reward_model"]
    model: str = Field(description="Model folder or Hub name.")
    output: int | str | None = Field(
        default=None, description="Index or label of the output; required if the model has several."
    )
    value: Literal["logit", "log_prob", "prob"] = Field(
        default="logit",
        description="Reward made of the output: itself, or the logarithm of its label's "
        "probability, in nats, or the probability.",
    )
    prefixes: bool = Field(
        default=False,
        description="Whether to score unfinished responses. Few reward models are trained on them.",
    )
    steps: Steps | None = Field(
        default=None, description="Step-by-step scoring, for a process reward model."
    )
    max_batch: int = Field(default=32, ge=1, description="Maximum responses per batch.")
    max_wait: float = Field(
        default=0.005, ge=0, description="Maximum seconds to wait for a batch to fill."
    )
    engine: dict[str, Any] = Field(
        default_factory=dict, description="vLLM flags of the reward model's engine."
    )

    public: ClassVar[frozenset[str]] = Fallible.public | {
        *("output", "value", "prefixes", "steps", "max_batch", "max_wait"),
    }

    @field_validator("steps")
    @classmethod
    def _steps_have_their_own_value(cls, steps: Steps | None, info: ValidationInfo) -> Steps | None:
        if steps is not None and info.data.get("value", "logit") != "logit":
            raise ValueError("remove value: the reward of a step is set by steps.probability")
        return steps


_ROUTES = {
    "vllm": ("classify", "pooling", "score", "openai_chat"),
    "sglang": ("classify", "openai_chat"),
    "tei": ("classify", "score"),
}


class HttpReward(Fallible):
    """Output of a reward model behind HTTP: a vLLM, SGLang or Text Embeddings Inference server."""

    kind: Literal["http"]
    url: str = Field(
        pattern=r"^https?://",
        description="Base address of the server, without a route and without /v1.",
    )
    server: Literal["vllm", "sglang", "tei"] = Field(
        default="vllm",
        description="Software of the server, which determines the form of requests: vLLM, SGLang, "
        "or Text Embeddings Inference.",
    )
    route: Literal["classify", "pooling", "score", "openai_chat"] = Field(
        description="Route of the server. classify: outputs of a sequence-classification model. "
        "pooling: outputs of any reward model (vLLM only). score: a cross-encoder's score of "
        "prompt and response. openai_chat: the last number in a chat model's answer."
    )
    model: str | None = Field(
        default=None,
        validate_default=True,
        description="Model id at the server; required by openai_chat.",
    )
    template: str | None = Field(
        default=None,
        validate_default=True,
        description="Text that the model reads; {prompt} and {response} are replaced by the texts. "
        "If null, the model reads the conversation, in its chat template.",
    )
    tokenizer: str | None = Field(
        default=None,
        validate_default=True,
        description="Folder or Hub name of the model's tokenizer. cdserve then applies the chat "
        "template, and sends the token ids of several responses per request.",
    )
    output: int | str | None = Field(
        default=None,
        description="Index of the output, or its label (TEI); required if the model has several.",
    )
    activation: bool = Field(
        default=False,
        description="Whether the output is a probability, after the model's sigmoid or softmax, "
        "instead of the raw output.",
    )
    prefixes: bool = Field(
        default=False,
        description="Whether to score unfinished responses. Few reward models are trained on them.",
    )
    api_key_env: str | None = Field(
        default=None, description="Environment variable that holds the server's API key."
    )
    concurrency: int = Field(
        default=8, ge=1, description="Maximum concurrent requests to the server."
    )
    retries: int = Field(default=2, ge=0, description="Retries after a failed attempt.")
    max_batch: int = Field(
        default=32,
        ge=1,
        description="Maximum responses per request, where the model reads texts, pairs or token "
        "ids. A conversation or a question is one request.",
    )
    max_wait: float = Field(
        default=0.005, ge=0, description="Maximum seconds to wait for a request to fill."
    )

    public: ClassVar[frozenset[str]] = Fallible.public | {
        *("server", "route", "output", "activation", "prefixes", "concurrency", "retries"),
        *("max_batch", "max_wait"),
    }

    @field_validator("url")
    @classmethod
    def _url_is_a_base_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("it must have no user, query or fragment; a key is in api_key_env")
        if (url := url.rstrip("/")).endswith("/v1"):
            raise ValueError("it must not end in /v1, which route openai_chat adds")
        return url

    @field_validator("route")
    @classmethod
    def _server_has_the_route(cls, route: str, info: ValidationInfo) -> str:
        routes = _ROUTES.get(info.data.get("server", ""), (route,))
        if route not in routes:
            raise ValueError(f"server {info.data['server']} has {', '.join(routes)}")
        return route

    @field_validator("model", "template", "tokenizer", "output", "activation", "prefixes")
    @classmethod
    def _field_fits_the_route(cls, value: Any, info: ValidationInfo) -> Any:
        server, route = info.data.get("server"), info.data.get("route")
        if server is None or route is None:  # invalid themselves
            return value
        field, where = info.field_name, f"route {route} of server {server}"
        missing = value is None or value is False
        match server, route, field:
            case (_, "openai_chat", "model" | "template") | ("tei", "classify", "template"):
                if missing:
                    raise ValueError(f"{where} requires it")
            case (
                (_, "openai_chat", "tokenizer" | "output" | "activation" | "prefixes")
                | (_, "score", "template" | "tokenizer")
                | ("vllm", "score", "output")
                | ("sglang", _, "activation")
                | ("tei", _, "model" | "tokenizer")
            ):
                if not missing:
                    raise ValueError(f"{where} does not have it")
            case "sglang", "classify", "tokenizer":
                if missing and info.data.get("template") is None:
                    raise ValueError(f"{where} reads text or token ids: set tokenizer or template")
            case ("tei", _, "output") if isinstance(value, int):
                raise ValueError("TEI sorts the outputs; it must be a label")
            case ("vllm" | "sglang", _, "output") if isinstance(value, str):
                raise ValueError(f"{where} does not send labels; it must be an index")
        if field == "template" and not missing and "{response}" not in value:
            raise ValueError("it must contain {response}")
        if field == "tokenizer" and not missing and info.data.get("template") is not None:
            raise ValueError("template replaces the conversation; remove one of them")
        return value


class LowerBound(_Section):
    """Lower confidence bound of an ensemble: mean - c · std."""

    lcb: float = Field(ge=0, description="c, the penalty on disagreement between the rewards.")


class EnsembleReward(Fallible):
    """Aggregate of other rewards; fails if any of them fails."""

    kind: Literal["ensemble"]
    of: list[str] = Field(
        min_length=2, description="Names of the aggregated rewards; ensembles are not allowed."
    )
    aggregate: Literal["mean", "median", "min"] | LowerBound = Field(
        default="mean", description="How the standardised rewards are aggregated."
    )

    public: ClassVar[frozenset[str]] = Fallible.public | {"of", "aggregate"}


Reward = Annotated[
    ValueHeadReward
    | LengthReward
    | RegexReward
    | JsonValidReward
    | LogLikReward
    | ConfidenceReward
    | LogRatioReward
    | PythonReward
    | JudgeReward
    | RewardModelReward
    | HttpReward
    | EnsembleReward,
    Field(discriminator="kind"),
]


BUILT_IN_REWARDS: dict[str, Reward] = {
    "self_certainty": ConfidenceReward(kind="confidence"),
    "deepconf": ConfidenceReward(
        kind="confidence", of="top_k_logprob", window=2048, aggregate="min"
    ),
}
"""Rewards of a server whose settings have no ``rewards``."""


class PairwiseJudge(_ChatModel):
    """A model behind an OpenAI-compatible endpoint that says which of two responses is better.

    It is asked about each pair twice, once in each order.
    """

    template: str = Field(
        default="Which answer to the request is better?\n\n[Request]\n{prompt}\n\n"
        "[Answer A]\n{first}\n\n[Answer B]\n{second}\n\n"
        'Do not let the order or the length of the answers influence you. End with "[[A]]" if '
        'answer A is better, "[[B]]" if answer B is better, or "[[C]]" for a tie.',
        description="Question to the judge; {prompt}, {first} and {second} are replaced by the "
        "texts.",
    )
    verdict: str = Field(
        default=r"\[\[([ABC])\]\]",
        description="Python regular expression whose only group is the verdict in the judge's "
        "answer: A (the first response is better), B, or C (a tie). Its last match counts.",
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of each question's request, such as vLLM's "
        "`structured_outputs`.",
    )
    on_failure: Literal["error", "skip", "base"] = Field(
        default="error",
        description="Effect of a failure. error: the request fails. skip: the response with the "
        "highest score is selected, without rewards the first one. base: the first response, a "
        "draw from the proposal, is selected.",
    )
    timeout: float = Field(
        default=60, gt=0, description="Seconds for all comparisons of one decision."
    )

    public: ClassVar[frozenset[str]] = frozenset(
        {"concurrency", "retries", "max_tokens", "on_failure", "timeout"}
    )
    """Fields that ``GET /v1/alignment`` shows."""

    @field_validator("template")
    @classmethod
    def _template_has_both_responses(cls, template: str) -> str:
        if "{first}" not in template or "{second}" not in template:
            raise ValueError("it must contain {first} and {second}")
        return template

    @field_validator("verdict")
    @classmethod
    def _verdict_has_one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"it is not a regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"it must have exactly one group; this one has {groups}")
        return pattern


class Limits(_Section):
    """Limits on a single request."""

    max_n: int = Field(
        default=64, ge=1, description="Maximum whole responses drawn for each one returned."
    )
    max_k: int = Field(default=32, ge=1, description="Maximum candidates per block.")
    max_candidate_tokens: int = Field(
        default=65536,
        ge=1,
        description="Maximum of candidates × max_tokens × answers (prompts × n) of a request.",
    )
    max_comparisons: int = Field(
        default=128,
        ge=1,
        description="Maximum pairs that a pairwise judge compares for each response returned.",
    )
    max_kl_budget: float | None = Field(
        default=None,
        ge=0,
        description="Maximum KL bound of a response, in nats, for policies that are not presets; "
        "methods without a KL budget are rejected. No limit if null.",
    )
    allow_negative_weights: bool = Field(
        default=False, description="Whether requests may give members negative weights."
    )
    allow_negative_rewards: bool = Field(
        default=False,
        description="Whether requests may give negative weights to rewards whose `sign` is null.",
    )


class Admission(_Section):
    """Limits on all requests together."""

    max_running: int | None = Field(
        default=None,
        ge=1,
        description="Maximum candidates in the engine, shared evenly between requests. If null, "
        "three quarters of the engine's max_num_seqs, which leaves room for plain requests.",
    )
    max_waiting: int = Field(
        default=8192,
        ge=0,
        description="Maximum candidates that wait for the engine. A request beyond it gets a 503.",
    )
    max_body_bytes: int = Field(
        default=64 << 20,
        ge=1,
        description="Maximum size of a request body, in bytes. A larger one gets a 413.",
    )


class Key(_Section):
    """Permissions and limits of one API key; the server-wide ones apply where absent."""

    api_key_env: str = Field(
        min_length=1, description="Environment variable that holds the API key."
    )
    methods: list[str] | None = Field(
        default=None, description="Methods that requests with this key may use; all if null."
    )
    presets: list[str] | None = Field(
        default=None, description="Presets that requests with this key may use; all if null."
    )
    limits: dict[str, Any] = Field(
        default_factory=dict, description="Overrides of the server-wide limits."
    )
    max_candidates: int | None = Field(
        default=None,
        ge=1,
        description="Maximum candidates of all running requests with this key. A request beyond "
        "it gets a 429.",
    )


class Playground(_Section):
    """The page at GET /playground."""

    examples: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="Example prompts for the served model. The page opens with the first one.",
    )
    gold: str | None = Field(
        default=None,
        description="Name of a reward that scores every finished text, so that policies are "
        "compared by a reward that they do not select by.",
    )


class Settings(_Section):
    """All settings of the server, except vLLM's own flags."""

    model: str = Field(description="Model folder or Hub name.")
    served_model_name: str | None = Field(
        default=None, description="Model id in the API; the value of model if null."
    )
    rewards: dict[str, Reward] = Field(
        default=BUILT_IN_REWARDS,
        description="Rewards that requests may name. If absent, the model's own confidence, as "
        "self_certainty and deepconf; {} for none.",
    )
    default_reward: str | None = Field(
        default=None, description="Reward used by policies that do not name one."
    )
    pairwise_judges: dict[str, PairwiseJudge] = Field(
        default_factory=dict,
        description="Judges of the selection `pairwise`, by the name that requests write in "
        "`judge`. A name of a reward is refused.",
    )
    extractors: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")],
        Annotated[str, Field(pattern=r"^\w+(\.\w+)*:\w+$")],
    ] = Field(
        default_factory=dict,
        description="Functions that find a response's answer for a vote, by the name that requests "
        "write in `extract`: module:function, from the response's text to the answer's, or None.",
    )
    members: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][\w-]*$")], str] = Field(
        default_factory=dict,
        description="Auxiliary models to mix with the base model, by name: folders or Hub names.",
    )
    presets: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Policies by name, usable in `alignment` and as model ids MODEL:NAME.",
    )
    refusal: str = Field(
        default="Sorry, I have no good answer to this.",
        min_length=1,
        description="Text of an answer whose score is below the policy's threshold, for policies "
        "with `on_reject: refuse`.",
    )
    limits: Limits = Field(
        default=Limits(), description="Limits on each request; API keys may differ."
    )
    admission: Admission = Field(
        default=Admission(), description="Limits on the candidates of all requests."
    )
    keys: dict[str, Key] = Field(
        default_factory=dict,
        description="API keys with permissions and limits of their own, by name, in addition to "
        "vLLM's --api-key.",
    )
    decoders: list[str] = Field(
        default_factory=list,
        description="Third-party decoders to load, by name in the entry-point group "
        "cdserve.decoders.",
    )
    keep_alive: float = Field(
        default=15.0,
        gt=0,
        description="Seconds of silence after which a stream of a request with a policy gets an "
        "comment, which keeps its connection open.",
    )
    kernels: bool = Field(
        default=True,
        description="Whether Triton kernels score, tilt and mix on a GPU, instead of PyTorch.",
    )
    playground: Playground | bool = Field(
        default=True,
        description="Whether to serve GET /playground; an object sets the page's example "
        "prompts and gold reward.",
    )
    error_details: Literal["log", "client"] = Field(
        default="log",
        description="Where the text of an exception in a reward or a decoder goes: to the server's "
        "log only, or to the client as well.",
    )
    engine: dict[str, Any] = Field(
        default_factory=dict, description="vLLM flags of the served model's engine."
    )

    @field_validator("members")
    @classmethod
    def _no_member_named_base(cls, members: dict[str, str]) -> dict[str, str]:
        if "base" in members:
            raise ValueError("'base' is the served model itself; give the member another name")
        return members

    @field_validator("extractors")
    @classmethod
    def _no_extractor_named_as_a_built_in(cls, extractors: dict[str, str]) -> dict[str, str]:
        for name in BUILT_IN_EXTRACTORS:
            if name in extractors:
                raise ValueError(f"{name!r} is built in; give the function another name")
        return extractors

    @model_validator(mode="after")
    def _likelihood_models_exist(self) -> "Settings":
        known = ["base", *self.members]
        for name, reward in self.rewards.items():
            for model in reward.models:
                if model not in known:
                    raise ValueError(
                        f"rewards.{name} names the member {model!r}; members: {', '.join(known)}"
                    )
        return self

    @model_validator(mode="after")
    def _default_reward_is_no_cost(self) -> "Settings":
        reward = self.rewards.get(self.default_reward or "")
        if reward is not None and reward.sign == "negative":
            raise ValueError(
                f"default_reward is {self.default_reward!r}, whose sign is negative; a policy "
                "without rewards gives it the weight 1"
            )
        return self

    @model_validator(mode="after")
    def _no_judge_named_as_a_reward(self) -> "Settings":
        for name in self.pairwise_judges:
            if name in self.rewards:
                raise ValueError(f"pairwise_judges.{name} has the name of a reward; rename it")
        return self

    @model_validator(mode="after")
    def _playground_gold_exists(self) -> "Settings":
        gold = self.playground.gold if isinstance(self.playground, Playground) else None
        if gold is not None and gold not in self.rewards:
            names = ", ".join(self.rewards) or "none"
            raise ValueError(f"playground.gold is {gold!r}, not a reward; rewards: {names}")
        return self

    @model_validator(mode="after")
    def _limits_of_keys_are_valid(self) -> "Settings":
        for name in self.keys:
            try:
                self.limits_of(name)
            except ValidationError as error:
                path, predicate = explain(error, Limits, self.keys[name].limits)
                key = ".".join(["keys", name, "limits", *map(str, path)])
                raise ValueError(f"{key} {predicate}") from error
        return self

    def sign_of(self, reward: str) -> Sign:
        """Weights that requests may give a reward."""
        default: Sign = "any" if self.limits.allow_negative_rewards else "positive"
        return self.rewards[reward].sign or default

    def limits_of(self, key: str) -> Limits:
        """Limits that apply to requests with a key."""
        return Limits.model_validate(self.limits.model_dump() | self.keys[key].limits)

    @property
    def has_built_in_rewards(self) -> bool:
        """Whether the rewards are the built-in ones, since the operator set none."""
        return "rewards" not in self.model_fields_set

    @property
    def token_stats(self) -> list[str]:
        """Statistics of tokens that the rewards read (``worker.token_stats``), sorted."""
        return sorted({name for reward in self.rewards.values() for name in reward.token_stats})

    @property
    def model_name(self) -> str:
        """Model id of the base model in the API."""
        return self.served_model_name or self.model


def load(path: Path | None, flags: Sequence[str] = ()) -> Settings:
    """Reads the settings.

    Args:
        path: the YAML file; relative paths in it are relative to its folder. None for no file.
        flags: ``key.key=value`` pairs, values in YAML.

    Raises:
        ConfigError: the file cannot be read or a setting is invalid; the message names the key,
            the value and what is accepted.
    """
    try:
        content = {} if path is None else yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping, got {safe_repr(content)}")
    for variable, value in os.environ.items():
        if variable.upper().startswith(_PREFIX):
            _apply(content, variable, _key(variable), value)
    for flag in flags:
        key, separator, value = flag.partition("=")
        if not separator:
            raise ConfigError(f"--set {flag}: expected key=value")
        _apply(content, f"--set {key}", key.split("."), value)
    try:
        settings = Settings.model_validate(content)
    except ValidationError as error:
        keys, predicate = explain(error, Settings, content)
        message = f"{'.'.join(map(str, keys))} {predicate}" if keys else predicate
        raise ConfigError(f"{path or 'settings'}: {message}") from error
    return _with_paths(settings, Path() if path is None else path.parent)


def _key(variable: str) -> list[str]:
    key = variable.upper().removeprefix(_PREFIX).lower().split("__")
    if key[0] not in Settings.model_fields:
        known = ", ".join(sorted(f"{_PREFIX}{name.upper()}" for name in Settings.model_fields))
        raise ConfigError(f"{variable} is not a setting; settings: {known}")
    return key


def _apply(content: dict[str, Any], source: str, key: Sequence[str], value: str) -> None:
    """Sets one value, given in YAML, in place."""
    *parents, last = key
    section = content
    for depth, parent in enumerate(parents, 1):
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            path = ".".join(key[:depth])
            raise ConfigError(f"{source}: {path} is {safe_repr(section)}, not a section")
    try:
        section[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is {safe_repr(value)}: {error}") from error


def _with_paths(settings: Settings, folder: Path) -> Settings:
    """The settings with absolute paths where ``folder`` has the path; Hub names stay unchanged."""

    def resolved(value: str) -> str:
        path = folder / Path(value).expanduser()
        return str(path.resolve()) if os.path.exists(path) else value

    def with_paths(reward: Reward) -> Reward:
        match reward:
            case ValueHeadReward(path=path, q_head=q_head):
                paths = {"path": resolved(path), "q_head": q_head and resolved(q_head)}
                return reward.model_copy(update=paths)
            case RewardModelReward(model=model):
                return reward.model_copy(update={"model": resolved(model)})
            case HttpReward(tokenizer=str(tokenizer)):
                return reward.model_copy(update={"tokenizer": resolved(tokenizer)})
        return reward

    members = {name: resolved(path) for name, path in settings.members.items()}
    changes: dict[str, Any] = {"model": resolved(settings.model), "members": members}
    if not settings.has_built_in_rewards:
        rewards = {name: with_paths(reward) for name, reward in settings.rewards.items()}
        changes["rewards"] = rewards
    return settings.model_copy(update=changes)
