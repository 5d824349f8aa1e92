"""The server's settings: one YAML file, environment variables ``CDSERVE_*``, and flags.

A flag (``--set limits.max_n=8``) wins over the environment (``CDSERVE_LIMITS__MAX_N=8``), which
wins over the file. What is not known is refused, never ignored.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cdserve.errors import ConfigError, safe_repr

_PREFIX = "CDSERVE_"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Standard(_Section):
    """Statistics of a reward: it is weighed as (reward - mean) / std, and reported raw."""

    mean: float = Field(description="In units of the reward.")
    std: float = Field(gt=0, description="In units of the reward.")


class _Kind(_Section):
    @property
    def models(self) -> tuple[str, ...]:
        """Whose log-likelihoods it reads: ``base``, or members."""
        return ()


class _Reward(_Kind):
    standardise: Standard | None = Field(
        default=None, description="It is weighed as (reward - mean) / std, and reported raw."
    )


class Fallible(_Reward):
    """What is declared of a reward that can fail."""

    on_failure: Literal["error", "skip", "base"] = Field(
        default="error",
        description="Without it: the request fails; the other rewards decide; or none does.",
    )
    timeout: float = Field(default=30, gt=0, description="Seconds for a decision's candidates.")


class ValueHeadReward(_Kind):
    """A value head, computed inside the engine's step."""

    kind: Literal["value_head"]
    path: str = Field(description="Folder of the head, as value_heads saves it.")
    q_head: str | None = Field(
        default=None, description="Folder of a Q-head of the same reward, for tokenwise_cd."
    )
    output: str | None = Field(
        default=None, description="Which of the heads' rewards; needed if they have several."
    )
    force: bool = Field(default=False, description="Attach it to another base than its own.")
    standardise: Standard | bool = Field(
        default=False, description="Statistics, or true for those that the head has."
    )


class LengthReward(_Reward):
    """How close a response's length is to a target, in tokens."""

    kind: Literal["length"]
    target: int = Field(gt=0, description="Tokens aimed for.")
    tolerance: int = Field(default=0, ge=0, description="Tokens off it that cost nothing.")


class RegexReward(_Reward):
    """1 where a pattern is found in a finished response, else 0."""

    kind: Literal["regex"]
    pattern: str = Field(description="A regular expression of Python's, searched for anywhere.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return pattern


class JsonValidReward(_Reward):
    """1 where a finished response is one JSON value, else 0."""

    kind: Literal["json_valid"]


class LogLikReward(_Reward):
    """log p of the response under a member or the base, in nats, computed inside the engine."""

    kind: Literal["loglik"]
    member: str = Field(default="base", description="A member, or the base.")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.member,)


class LogRatioReward(_Reward):
    """beta log p_tuned / p_reference of the response, computed inside the engine."""

    kind: Literal["log_ratio"]
    tuned: str = Field(description="A member, or the base.")
    reference: str = Field(default="base", description="A member, or the base.")
    beta: float = Field(default=1.0, gt=0, description="Units of the reward a nat.")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.tuned, self.reference)


class PythonReward(Fallible):
    """A function ``(prompt, response) -> float`` of the operator's, of any importable module."""

    kind: Literal["python"]
    callable: str = Field(pattern=r"^\w+(\.\w+)*:\w+$", description="module:function")
    prefixes: bool = Field(
        default=False,
        description="Whether to score unfinished responses: the function is given the text so far.",
    )


class JudgeReward(Fallible):
    """The grade that a model behind an OpenAI-compatible endpoint gives a finished response."""

    kind: Literal["judge"]
    url: str = Field(pattern=r"^https?://", description="Up to and including /v1.")
    model: str = Field(description="The model's name there.")
    rubric: str = Field(description="The question; {prompt} and {response} stand for themselves.")
    scale: tuple[float, float] = Field(default=(1, 10), description="Least and greatest grade.")
    api_key_env: str | None = Field(
        default=None, description="The environment variable that holds the key."
    )
    concurrency: int = Field(default=8, ge=1, description="Questions at once, of all requests.")
    retries: int = Field(default=2, ge=0, description="Of attempts that fail.")
    max_tokens: int = Field(default=512, ge=1, description="Of an answer.")

    @field_validator("rubric")
    @classmethod
    def _shows_the_response(cls, rubric: str) -> str:
        if "{response}" not in rubric:
            raise ValueError("it must hold {response}")
        return rubric

    @field_validator("scale")
    @classmethod
    def _rises(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not scale[0] < scale[1]:
            raise ValueError("its first number must be below its second")
        return scale


class Steps(_Section):
    """How a process reward model reads a response: step by step, with a marker after each."""

    marker: str = Field(description="The token at which the model gives a step's reward.")
    separator: str = Field(default="\n\n", min_length=1, description="What steps end with.")
    aggregate: Literal["last", "min", "mean", "product"] = Field(
        default="min", description="What makes one reward of the steps'."
    )
    probability: bool = Field(
        default=True,
        description="Of the label, by softmax over the labels, or by sigmoid of the only one; "
        "else its raw output.",
    )


class RewardModelReward(Fallible):
    """An output of a sequence-classification model, which an engine of its own serves."""

    kind: Literal["reward_model"]
    model: str = Field(description="Folder, or name on the Hub.")
    output: int | str | None = Field(
        default=None, description="Index or label; needed if the model has several."
    )
    prefixes: bool = Field(
        default=False,
        description="Whether to score unfinished responses, which few such models are trained on.",
    )
    steps: Steps | None = Field(default=None, description="For a process reward model.")
    max_batch: int = Field(default=32, ge=1, description="Responses scored at once.")
    max_wait: float = Field(
        default=0.005, ge=0, description="Seconds that a batch waits to be fuller."
    )
    engine: dict[str, Any] = Field(default_factory=dict, description="vLLM flags.")


class LowerBound(_Section):
    """mean - c · std of an ensemble."""

    lcb: float = Field(ge=0, description="c, how much disagreement counts against a response.")


class EnsembleReward(Fallible):
    """Other rewards as one; it fails where one of them does."""

    kind: Literal["ensemble"]
    of: list[str] = Field(min_length=2, description="Names of other rewards, not ensembles.")
    aggregate: Literal["mean", "median", "min"] | LowerBound = Field(
        default="mean", description="What makes one of them; each enters standardised."
    )


Reward = Annotated[
    ValueHeadReward
    | LengthReward
    | RegexReward
    | JsonValidReward
    | LogLikReward
    | LogRatioReward
    | PythonReward
    | JudgeReward
    | RewardModelReward
    | EnsembleReward,
    Field(discriminator="kind"),
]


class Limits(_Section):
    """The operator's bounds on what one request may ask for."""

    max_n: int = Field(default=64, ge=1, description="Candidates of best-of-n.")
    max_k: int = Field(default=32, ge=1, description="Candidates a block.")
    max_candidate_tokens: int = Field(
        default=65536, ge=1, description="Candidates × max_tokens × answers of a request."
    )
    max_kl_budget: float | None = Field(
        default=None,
        ge=0,
        description="Nats that the KL bound of any answer to a request may reach, presets apart; "
        "methods that keep no budget are refused. None for no such limit.",
    )
    allow_negative_weights: bool = Field(
        default=False, description="Whether requests may give members negative weights."
    )


class Admission(_Section):
    """How many candidates, of all requests, the server takes on."""

    max_running: int | None = Field(
        default=None,
        ge=1,
        description="Candidates in the engine at once, shared evenly between requests. None: three "
        "quarters of its max_num_seqs, so that plain requests find room.",
    )
    max_waiting: int = Field(
        default=8192,
        ge=0,
        description="Candidates that may wait for the engine; requests with more are a 503.",
    )
    max_body_bytes: int = Field(default=64 << 20, ge=1, description="Of a request; else a 413.")


class Key(_Section):
    """What the holder of an API key may do; what is not said is as for everybody."""

    api_key_env: str = Field(min_length=1, description="Environment variable that holds the key.")
    methods: list[str] | None = Field(default=None, description="That requests may name.")
    presets: list[str] | None = Field(default=None, description="That requests may name.")
    limits: dict[str, Any] = Field(
        default_factory=dict, description="Those of the server's limits that differ."
    )
    max_candidates: int | None = Field(
        default=None, ge=1, description="Candidates that its requests may hold at once; else a 429."
    )


class Settings(_Section):
    """Everything an operator sets beside vLLM's own flags."""

    model: str = Field(description="Folder, or name on the Hub.")
    served_model_name: str | None = Field(
        default=None, description="The model's id on the wire; the model itself if absent."
    )
    rewards: dict[str, Reward] = Field(
        default_factory=dict, description="What requests may decode towards, by name."
    )
    default_reward: str | None = Field(
        default=None, description="That of policies which name no rewards."
    )
    members: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][\w-]*$")], str] = Field(
        default_factory=dict, description="Models to mix with the base: local or Hub paths."
    )
    presets: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Policies by name: for `alignment`, and as model ids MODEL:NAME.",
    )
    limits: Limits = Field(default=Limits(), description="Of one request.")
    admission: Admission = Field(default=Admission(), description="Of all requests together.")
    keys: dict[str, Key] = Field(
        default_factory=dict, description="API keys with bounds of their own, beside --api-key."
    )
    decoders: list[str] = Field(
        default_factory=list,
        description="Third-party decoders to load, by their names in the entry-point group "
        "cdserve.decoders.",
    )
    keep_alive: float = Field(
        default=5.0, gt=0, description="Seconds between comments on a silent aligned stream."
    )
    kernels: bool = Field(
        default=True,
        description="Whether Triton kernels score, tilt and mix on a GPU; off, PyTorch does.",
    )
    playground: bool = Field(default=True, description="Whether GET /playground is served.")
    error_details: Literal["log", "client"] = Field(
        default="log",
        description="Who is told the text of an exception in a reward or a decoder: the server's "
        "log alone, or the client too.",
    )
    engine: dict[str, Any] = Field(default_factory=dict, description="vLLM flags.")

    @field_validator("members")
    @classmethod
    def _base_is_taken(cls, members: dict[str, str]) -> dict[str, str]:
        if "base" in members:
            raise ValueError("'base' is the served model itself; give the member another name")
        return members

    @model_validator(mode="after")
    def _likelihoods_are_of_members(self) -> "Settings":
        known = ["base", *self.members]
        for name, reward in self.rewards.items():
            for model in reward.models:
                if model not in known:
                    raise ValueError(
                        f"rewards.{name} names the member {model!r}; there is {', '.join(known)}"
                    )
        return self

    @model_validator(mode="after")
    def _limits_of_keys_are_limits(self) -> "Settings":
        for name in self.keys:
            try:
                self.limits_of(name)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                key = ".".join(["keys", name, "limits", *map(str, first["loc"])])
                raise ValueError(f"{key} is {safe_repr(first['input'])}: {first['msg']}") from error
        return self

    def limits_of(self, key: str) -> Limits:
        """The limits of the holder of a key."""
        return Limits.model_validate(self.limits.model_dump() | self.keys[key].limits)

    @property
    def likelihoods(self) -> list[str]:
        """Models whose log-likelihoods rewards read: ``base``, and members."""
        return sorted({model for reward in self.rewards.values() for model in reward.models})

    @property
    def model_name(self) -> str:
        """The base model's id on the wire."""
        return self.served_model_name or self.model


def load(path: Path, flags: Sequence[str] = ()) -> Settings:
    """Reads the settings.

    Args:
        path: the YAML file; relative paths in it are relative to its folder.
        flags: ``key.key=value`` pairs, values in YAML.

    Raises:
        ConfigError: naming the key, the value and what is accepted.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a mapping is expected, found {safe_repr(content)}")
    for variable, value in os.environ.items():
        if variable.upper().startswith(_PREFIX):
            _apply(content, variable, _key(variable), value)
    for flag in flags:
        key, separator, value = flag.partition("=")
        if not separator:
            raise ConfigError(f"--set {flag}: key=value is expected")
        _apply(content, f"--set {key}", key.split("."), value)
    try:
        settings = Settings.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        found = f"{key} is {safe_repr(first['input'])}: " if key else ""
        raise ConfigError(f"{path}: {found}{first['msg']}") from error
    return _with_paths(settings, path.parent)


def _key(variable: str) -> list[str]:
    key = variable.upper().removeprefix(_PREFIX).lower().split("__")
    if key[0] not in Settings.model_fields:
        known = ", ".join(sorted(f"{_PREFIX}{name.upper()}" for name in Settings.model_fields))
        raise ConfigError(f"{variable} is not known; settings: {known}")
    return key


def _apply(content: dict[str, Any], source: str, key: Sequence[str], value: str) -> None:
    """Lays one value, in YAML, over the settings."""
    *parents, last = key
    section = content
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{source}: {parent} holds a value, not a section")
    try:
        section[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is {safe_repr(value)}: {error}") from error


def _with_paths(settings: Settings, folder: Path) -> Settings:
    """Relative paths that exist under ``folder``, made absolute; hub names stay as they are."""

    def resolved(value: str) -> str:
        return str((folder / value).resolve()) if (folder / value).exists() else value

    def with_paths(reward: Reward) -> Reward:
        match reward:
            case ValueHeadReward(path=path, q_head=q_head):
                found = {"path": resolved(path), "q_head": q_head and resolved(q_head)}
                return reward.model_copy(update=found)
            case RewardModelReward(model=model):
                return reward.model_copy(update={"model": resolved(model)})
        return reward

    rewards = {name: with_paths(reward) for name, reward in settings.rewards.items()}
    members = {name: resolved(path) for name, path in settings.members.items()}
    return settings.model_copy(
        update={"model": resolved(settings.model), "rewards": rewards, "members": members}
    )
