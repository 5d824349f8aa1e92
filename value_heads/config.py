"""Configuration of a value head."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

FORMAT_VERSION = 1

Architecture = Literal["linear", "mlp", "lowrank", "tied", "mahalanobis"]
Kind = Literal["mean", "soft"]
Output = Literal["identity", "sigmoid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """The configuration of a value head, stored as its `config.json`.

    Attributes:
        architecture: for a value head "linear", "mlp" with one hidden layer, or "mahalanobis",
            minus a distance (`confidence_head`); for a Q-head "lowrank", or "tied" to the base
            model's LM head.
        kind: "mean" for E[r | prefix], "soft" for beta log E[exp(r / beta) | prefix]. A
            "mahalanobis" head, which predicts no reward, has "mean".
        beta: beta of a soft value, in reward units per nat; None for a mean.
        output: function applied to the net's outputs before shift and scale: "identity", or
            "sigmoid" for rewards from shift to shift + scale. A Q-head and a "mahalanobis" head
            have "identity".
        rewards: names of the G outputs; a "mahalanobis" head has one.
        hidden_size: size d of the base model's hidden state.
        mlp_width: width of the hidden layer of an "mlp"; None for the others.
        rank: inner width r of a "lowrank" Q-head; None for the others.
        vocab_size: tokens that a Q-head has values for; None for a value head.
        position_limit: largest position that the head reads in addition to the state: the number
            of response tokens in the prefix, as `position_features`. None for a head that reads the
            state alone, as a "mahalanobis" head does.
        shift, scale: G numbers each; V = shift + scale * output(net(h)), in units of the raw
            reward. A "mahalanobis" head, whose value has no unit, has 0 and 1.
        base_model: name of the base model, for people.
        base_hash: `hash_base` of the base model's folder; None allows any model of the same
            hidden size.
        layer: index into the Transformers tuple `hidden_states`; -1 is the last.
        post_norm: whether the state is read after the final norm, as `hidden_states[-1]` is for
            Llama-class models.
        dtype: the dtype of the stored weights; the head always computes in float32.
        version: version of this file format.
    """

    architecture: Architecture
    kind: Kind = "mean"
    beta: float | None = None
    output: Output = "identity"
    rewards: tuple[str, ...]
    hidden_size: int
    mlp_width: int | None = None
    rank: int | None = None
    vocab_size: int | None = None
    position_limit: int | None = None
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    base_model: str
    base_hash: str | None = None
    layer: int = -1
    post_norm: bool = True
    dtype: Literal["float32"] = "float32"
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Refuse values outside the accepted sets."""
        count = len(self.rewards) if _is_names(self.rewards) else 0
        architectures = get_args(Architecture)
        accepted = f"one of {', '.join(architectures)}"
        _check("architecture", self.architecture, accepted, _one_of(*architectures))
        _check("kind", self.kind, '"mean" or "soft"', _one_of("mean", "soft"))
        if self.kind == "soft":
            _check("beta", self.beta, "a positive number, as the head is soft", _is_positive)
        else:
            _check("beta", self.beta, "null, as the head is not soft", _one_of(None))
        if self.architecture in ("lowrank", "tied"):
            _check("output", self.output, '"identity", as it is a Q-head', _one_of("identity"))
        else:
            _check("output", self.output, '"identity" or "sigmoid"', _one_of(*get_args(Output)))
        _check("rewards", self.rewards, "one or more different, non-empty names", _is_names)
        _check("hidden_size", self.hidden_size, "a positive integer", _is_positive_int)
        self._check_size("mlp_width", "mlp")
        self._check_size("rank", "lowrank")
        self._check_size("vocab_size", "lowrank", "tied")
        if self.position_limit is not None:
            self._check_size("position_limit", "linear", "mlp", "lowrank", "tied")
        numbers = f"{count} finite numbers, one for each reward"
        _check("shift", self.shift, numbers, lambda value: _is_numbers(value, count))
        positive = f"{count} positive numbers, one for each reward"
        _check("scale", self.scale, positive, lambda value: _is_positives(value, count))
        if self.architecture == "mahalanobis":
            self._check_distance()
        _check("base_model", self.base_model, "a string", lambda value: isinstance(value, str))
        _check("base_hash", self.base_hash, "64 hexadecimal digits or null", _is_hash)
        _check("layer", self.layer, "an integer", lambda value: type(value) is int)
        _check("post_norm", self.post_norm, "true or false", lambda value: type(value) is bool)
        _check("dtype", self.dtype, '"float32"', _one_of("float32"))
        _check("version", self.version, str(FORMAT_VERSION), _one_of(FORMAT_VERSION))

    def _check_size(self, field: str, *architectures: Architecture) -> None:
        """Check that a size is set for its architectures, and for no other."""
        value = getattr(self, field)
        if self.architecture in architectures:
            _check(field, value, "a positive integer", _is_positive_int)
        else:
            _check(field, value, f"null, as the head is {self.architecture}", _one_of(None))

    def _check_distance(self) -> None:
        """Check that the config yields exactly the negative distance."""
        why = "as the head is mahalanobis"
        _check("kind", self.kind, f'"mean", {why}', _one_of("mean"))
        _check("output", self.output, f'"identity", {why}', _one_of("identity"))
        _check("rewards", self.rewards, f"one name, {why}", lambda value: len(value) == 1)
        _check("shift", self.shift, f"0, {why}", lambda value: value == (0,))
        _check("scale", self.scale, f"1, {why}", lambda value: value == (1,))

    def to_json(self) -> str:
        """Return the configuration as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "HeadConfig":
        """Read a configuration.

        Raises:
            ValueError: a key is unknown or missing, or a value is outside its accepted set; the
                message names the field, the value and the set.
        """
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError(f"a head's config.json must be an object, got {_shown(data)}")
        names = [field.name for field in fields(cls)]
        if unknown := sorted(data.keys() - set(names)):
            raise ValueError(f"unknown key {_shown(unknown[0])}; accepted: {', '.join(names)}")
        required = {field.name for field in fields(cls)} - _SINCE_VERSION_1
        if missing := sorted(required - data.keys()):
            raise ValueError(f"missing key {missing[0]!r}; required: {', '.join(sorted(required))}")
        for name in ("rewards", "shift", "scale"):
            if isinstance(data[name], list):
                data[name] = tuple(data[name])
        return cls(**data)


_SINCE_VERSION_1 = {"rank", "vocab_size", "beta", "output", "position_limit"}
"""Fields that older files lack."""


def _check(field: str, value: object, accepted: str, accepts: Callable[[Any], bool]) -> None:
    if not accepts(value):
        raise ValueError(f"{field} must be {accepted}, got {_shown(value)}")


def _shown(value: object) -> str:
    return repr(value)[:80]


def _one_of(*options: object) -> Callable[[object], bool]:
    return lambda value: any(type(value) is type(option) and value == option for option in options)


def _is_positive_int(value: object) -> bool:
    return type(value) is int and value > 0


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _is_names(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) > 0
        and all(isinstance(name, str) and name for name in value)
        and len(set(value)) == len(value)
    )


def _is_numbers(value: object, count: int) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == count
        and all(type(number) in (int, float) and math.isfinite(number) for number in value)
    )


def _is_positives(value: Any, count: int) -> bool:
    return _is_numbers(value, count) and all(number > 0 for number in value)


def _is_hash(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
