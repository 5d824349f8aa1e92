"""Rewards built from the operator's settings."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cdserve import config
from cdserve.errors import ConfigError, safe_repr
from cdserve.scoring.confidence import Confidence
from cdserve.scoring.endpoint import Endpoint
from cdserve.scoring.ensemble import AGGREGATES, Ensemble, lower_bound
from cdserve.scoring.functions import imported
from cdserve.scoring.held_out import HeldOut
from cdserve.scoring.http_model import (
    ChatNumber,
    HttpModel,
    HttpOutput,
    Reader,
    read_messages,
    read_pairs,
    route,
    template_reader,
    token_reader,
)
from cdserve.scoring.judge import Judge, chat_model
from cdserve.scoring.pairwise import PairwiseJudge
from cdserve.scoring.programmatic import (
    JsonValid,
    Length,
    LogLik,
    LogRatio,
    Python,
    Regex,
    ValueHead,
)
from cdserve.scoring.reward import Reward, RewardOptions
from cdserve.scoring.reward_model import STEP_AGGREGATES, ModelOutput, RewardModel, Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOutput:
    """One output of a value head, by the head's configuration."""

    kind: str
    shift: float
    scale: float
    prefixes: bool = True
    """Whether the output is defined for unfinished responses."""
    held_out: HeldOut | None = None
    """Figures on held-out responses; None if the head's folder has none."""


def build(
    settings: Mapping[str, config.Reward],
    heads: Mapping[str, HeadOutput] | None = None,
    models: Mapping[str, ModelOutput] | None = None,
) -> dict[str, Reward]:
    """Rewards by name, in the order of the settings.

    Args:
        heads: for each ``value_head``, the output that it reads.
        models: for each ``reward_model``, the source of its scores.

    Raises:
        ConfigError: a callable cannot be imported, an ensemble names an unknown reward, a variable
            with an API key is not set, or a tokenizer cannot be read.
    """
    heads, models = heads or {}, models or {}
    http_models: dict[str, HttpModel] = {}
    rewards: dict[str, Reward] = {}
    # Ensembles come last: they combine other rewards, but not each other.
    for name, reward in sorted(settings.items(), key=lambda item: item[1].kind == "ensemble"):
        rewards[name] = _reward(name, reward, heads.get(name), models, http_models, rewards)
        rewards[name].options = _options(reward, heads.get(name))
        if (head := heads.get(name)) is not None and head.kind == "mean":
            rewards[name].held_out = head.held_out
    return {name: rewards[name] for name in settings}


def build_judges(settings: Mapping[str, config.PairwiseJudge]) -> dict[str, PairwiseJudge]:
    """Pairwise judges by name, in the order of the settings.

    Raises:
        ConfigError: a variable with an API key is not set.
    """
    judges: dict[str, PairwiseJudge] = {}
    for name, judge in settings.items():
        endpoint = _endpoint(f"pairwise_judges.{name}", judge, "the judge", judge.url)
        ask = chat_model(endpoint, judge.model, judge.max_tokens, judge.extra_body)
        judges[name] = PairwiseJudge(
            ask,
            judge.template,
            judge.verdict,
            concurrency=judge.concurrency,
            on_failure=judge.on_failure,
            timeout=judge.timeout,
        )
    return judges


def _reward(
    name: str,
    settings: config.Reward,
    head: HeadOutput | None,
    models: Mapping[str, ModelOutput],
    http_models: dict[str, HttpModel],
    others: Mapping[str, Reward],
) -> Reward:
    match settings:
        case config.ValueHeadReward():
            return ValueHead(name) if head is None else ValueHead(name, head.kind, head.prefixes)
        case config.LogLikReward():
            return LogLik(settings.member, mean=settings.per_token)
        case config.ConfidenceReward():
            return Confidence(settings.statistic, settings.window, settings.aggregate)
        case config.LogRatioReward():
            return LogRatio(settings.tuned, settings.reference, settings.beta)
        case config.LengthReward():
            return Length(settings.target, settings.tolerance)
        case config.RegexReward():
            return Regex(settings.pattern)
        case config.JsonValidReward():
            return JsonValid()
        case config.PythonReward():
            function = imported(f"rewards.{name}.callable", settings.callable)
            return Python(function, settings.prefixes)
        case config.JudgeReward():
            return _judge(name, settings)
        case config.RewardModelReward():
            steps = None if settings.steps is None else _steps(settings.steps)
            return RewardModel(
                models[name], prefixes=settings.prefixes, value=settings.value, steps=steps
            )
        case config.HttpReward():
            return _http(name, settings, http_models)
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
    endpoint = _endpoint(f"rewards.{name}", settings, "the judge", settings.url)
    ask = chat_model(endpoint, settings.model, settings.max_tokens)
    return Judge(ask, settings.rubric, *settings.scale, settings.concurrency)


def _http(name: str, settings: config.HttpReward, models: dict[str, HttpModel]) -> Reward:
    if settings.route == "openai_chat":
        endpoint = _endpoint(f"rewards.{name}", settings, "the judge", f"{settings.url}/v1")
        assert settings.model is not None  # as the settings' checks ensure
        assert settings.template is not None
        ask = chat_model(endpoint, settings.model)
        return ChatNumber(ask, settings.template, settings.concurrency)
    key = settings.model_dump_json(exclude={"output", "prefixes", "standardise", "on_failure"})
    if key not in models:  # rewards by other outputs share the requests
        models[key] = _http_model(name, settings)
    return HttpOutput(models[key], settings.output, prefixes=settings.prefixes)


def _http_model(name: str, settings: config.HttpReward) -> HttpModel:
    one = settings.route != "score" and settings.template is None and settings.tokenizer is None
    return HttpModel(
        name,
        _endpoint(f"rewards.{name}", settings, "the reward server", settings.url),
        route(settings.server, settings.route, settings.model, activation=settings.activation),
        _reader(name, settings),
        max_batch=1 if one else settings.max_batch,
        max_wait=0 if one else settings.max_wait,
        concurrency=settings.concurrency,
    )


def _reader(name: str, settings: config.HttpReward) -> Reader:
    if settings.route == "score":
        return read_pairs
    if settings.template is not None:
        return template_reader(settings.template)
    if settings.tokenizer is None:
        return read_messages
    from transformers import AutoTokenizer

    try:
        return token_reader(AutoTokenizer.from_pretrained(settings.tokenizer))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"rewards.{name}.tokenizer is {safe_repr(settings.tokenizer)}: {error}"
        ) from error


def _endpoint(
    path: str,
    settings: config.JudgeReward | config.HttpReward | config.PairwiseJudge,
    subject: str,
    url: str,
) -> Endpoint:
    variable = settings.api_key_env
    key = None if variable is None else os.environ.get(variable)
    if variable is not None and key is None:
        raise ConfigError(f"{path}.api_key_env names {variable}, which is not set")
    return Endpoint(subject, url, key, timeout=settings.timeout, retries=settings.retries)


def _ensemble(name: str, settings: config.EnsembleReward, others: Mapping[str, Reward]) -> Ensemble:
    for part in settings.of:
        if part not in others or others[part].kind == "ensemble":
            accepted = [other for other, reward in others.items() if reward.kind != "ensemble"]
            raise ConfigError(
                f"rewards.{name}.of names {part!r}; "
                f"it may name {', '.join(sorted(accepted)) or 'none'}"
            )
    aggregate = settings.aggregate
    combine = AGGREGATES[aggregate] if isinstance(aggregate, str) else lower_bound(aggregate.lcb)
    return Ensemble({part: others[part] for part in settings.of}, combine)


def _options(settings: config.Reward, head: HeadOutput | None) -> RewardOptions:
    stats = settings.standardise
    if stats is True and head is not None:
        stats = config.Standardisation(mean=head.shift, std=head.scale)
    options = RewardOptions()
    if isinstance(stats, config.Standardisation):
        options = replace(options, mean=stats.mean, std=stats.std)
    if isinstance(settings, config.Fallible):
        options = replace(options, on_failure=settings.on_failure, timeout=settings.timeout)
    return options
