"""Rewards out of the operator's settings."""

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cdserve import config
from cdserve.errors import ConfigError
from cdserve.scoring.ensemble import AGGREGATES, Ensemble, lower_bound
from cdserve.scoring.judge import Judge, endpoint
from cdserve.scoring.programmatic import (
    JsonValid,
    Length,
    LogLik,
    LogRatio,
    Python,
    Regex,
    ValueHead,
)
from cdserve.scoring.reward import Reward, Terms
from cdserve.scoring.reward_model import STEP_AGGREGATES, ModelOutput, RewardModel, Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOutput:
    """What a head's configuration says of one of its outputs."""

    kind: str
    shift: float
    scale: float
    prefixes: bool = True
    """Whether it has a meaning for unfinished responses."""


def build(
    settings: Mapping[str, config.Reward],
    heads: Mapping[str, HeadOutput] | None = None,
    models: Mapping[str, ModelOutput] | None = None,
) -> dict[str, Reward]:
    """The rewards that settings describe, by name, in their order.

    Args:
        heads: of each ``value_head``, what its head says of the output it reads.
        models: of each ``reward_model``, where its scores come from.

    Raises:
        ConfigError: a callable cannot be imported, or an ensemble is of what is not there.
    """
    heads, models = heads or {}, models or {}
    made: dict[str, Reward] = {}
    # Ensembles are made of the others, and not of each other.
    for name, reward in sorted(settings.items(), key=lambda item: item[1].kind == "ensemble"):
        made[name] = _reward(name, reward, heads.get(name), models, made)
        made[name].terms = _terms(reward, heads.get(name))
    return {name: made[name] for name in settings}


def _reward(
    name: str,
    settings: config.Reward,
    head: HeadOutput | None,
    models: Mapping[str, ModelOutput],
    others: Mapping[str, Reward],
) -> Reward:
    match settings:
        case config.ValueHeadReward():
            return ValueHead(name) if head is None else ValueHead(name, head.kind, head.prefixes)
        case config.LogLikReward():
            return LogLik(settings.member)
        case config.LogRatioReward():
            return LogRatio(settings.tuned, settings.reference, settings.beta)
        case config.LengthReward():
            return Length(settings.target, settings.tolerance)
        case config.RegexReward():
            return Regex(settings.pattern)
        case config.JsonValidReward():
            return JsonValid()
        case config.PythonReward():
            return Python(_imported(name, settings.callable), settings.prefixes)
        case config.JudgeReward():
            return _judge(name, settings)
        case config.RewardModelReward():
            steps = None if settings.steps is None else _steps(settings.steps)
            return RewardModel(models[name], prefixes=settings.prefixes, steps=steps)
        case config.EnsembleReward():
            return _ensemble(name, settings, others)


def _steps(settings: config.Steps) -> Steps:
    return Steps(
        marker=settings.marker,
        separator=settings.separator,
        aggregate=STEP_AGGREGATES[settings.aggregate],
        probability=settings.probability,
    )


def _judge(name: str, settings: config.JudgeReward) -> Judge:
    variable = settings.api_key_env
    key = "none" if variable is None else os.environ.get(variable)
    if key is None:
        raise ConfigError(f"rewards.{name}.api_key_env names {variable}, which is not set")
    ask = endpoint(
        settings.url,
        settings.model,
        key,
        timeout=settings.timeout,
        retries=settings.retries,
        max_tokens=settings.max_tokens,
    )
    return Judge(ask, settings.rubric, *settings.scale, settings.concurrency)


def _ensemble(name: str, settings: config.EnsembleReward, others: Mapping[str, Reward]) -> Ensemble:
    for one in settings.of:
        if one not in others or others[one].kind == "ensemble":
            known = [other for other, reward in others.items() if reward.kind != "ensemble"]
            raise ConfigError(
                f"rewards.{name}.of names {one!r}; it may name {', '.join(sorted(known)) or 'none'}"
            )
    aggregate = settings.aggregate
    combined = AGGREGATES[aggregate] if isinstance(aggregate, str) else lower_bound(aggregate.lcb)
    return Ensemble({one: others[one] for one in settings.of}, combined)


def _terms(settings: config.Reward, head: HeadOutput | None) -> Terms:
    standard = settings.standardise
    if standard is True and head is not None:
        standard = config.Standardisation(mean=head.shift, std=head.scale)
    terms = Terms()
    if isinstance(standard, config.Standardisation):
        terms = replace(terms, mean=standard.mean, std=standard.std)
    if isinstance(settings, config.Fallible):
        terms = replace(terms, on_failure=settings.on_failure, timeout=settings.timeout)
    return terms


def _imported(name: str, path: str) -> Callable[[str, str], float]:
    module, function = path.split(":")
    try:
        found = vars(importlib.import_module(module))[function]
    except (ImportError, KeyError) as error:
        raise ConfigError(f"rewards.{name}.callable: {path} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"rewards.{name}.callable: {path} is not callable")
    result: Callable[[str, str], float] = found
    return result
