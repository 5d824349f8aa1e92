"""Trains a head: responses, states, rewards, fit, report; an interrupted run resumes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from cdserve.errors import ConfigError
from cdserve.training.backbone import Backbone
from cdserve.training.example_cache import cache_examples
from cdserve.training.examples import read_examples
from cdserve.training.fill_cache import FilledCache, fill_cache
from cdserve.training.head import method, new_head
from cdserve.training.job import Data, DataFile, TrainingJob
from cdserve.training.plot import draw, draw_pairs
from cdserve.training.rewards import JobRewards
from cdserve.training.score import score
from value_heads import (
    Base,
    CachedRollouts,
    FitReport,
    Head,
    HeadReport,
    PairReport,
    QHead,
    fit,
    fit_pairs,
    markdown,
    measure,
    measure_pairs,
    pair_markdown,
)

_WEIGHTS = "model.safetensors"
_CHECKPOINT = "checkpoint.pt"
_PLOT = "report.png"
_PAIR_TERMS = (
    "Bradley-Terry value",
    "Values have no unit. For two responses to the same prompt, the difference of the values of "
    "prefixes of equal length, or of the whole responses, is the log-odds that the first response "
    "is preferred.",
)
_CARD_LABELS = {"responses a prompt": "responses per prompt"}  # a key of report.json stays


def train(job: TrainingJob) -> HeadReport | PairReport:
    """Trains the head and writes its folder: weights, model card, ``report.json``, ``report.png``.

    An interrupted run resumes with the responses and states in the cache and from the last epoch.

    Raises:
        ConfigError: the folder already has a head, or an input cannot be used.
    """
    if (job.out / _WEIGHTS).exists():
        raise ConfigError(f"--out {job.out} already has a head; choose another folder")
    model = model_folder(job.data.model)
    cache = cached(job.data, job.rewards, model, pairs=job.method == "bt")
    _check_ended(job, cache)
    scores = score(job.rewards, cache, job.score_cut)
    if job.head.bounds is not None:
        scores.check_bounds(*job.head.bounds)
    shards = {
        name: CachedRollouts(cache.folder, name, rewards, cut_ends=job.score_cut)
        for name, rewards in scores.by_set.items()
    }
    head = new_head(job, model, cache.base_hash, scores, shards["train"].longest)
    base = _base(job, model)
    job.out.mkdir(parents=True, exist_ok=True)
    checkpoint = job.out / _CHECKPOINT
    train_set, validation, test = (shards[name] for name in ("train", "validation", "test"))
    fixed: dict[str, Any] = {"base": base, "checkpoint": checkpoint, "progress": True}
    report: HeadReport | PairReport
    try:
        if cache.pairs:
            fitted = fit_pairs(head, train_set, validation, job.options, **fixed)
            report = measure_pairs(head, test, base)
            head.card_terms = _PAIR_TERMS
        else:
            fitted = fit(head, train_set, validation, method(job), job.options, **fixed)
            report = measure(head, test, base)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _write(job, cache, head, fitted, report)
    checkpoint.unlink()
    return report


def model_folder(model: str) -> Path:
    """Folder of a model, downloaded if it is a name on the Hub."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"--model {model} cannot be fetched: {reason}") from error


def cached(data: Data | DataFile, rewards: JobRewards, model: Path, pairs: bool) -> FilledCache:
    """The cache of the responses and states, filled.

    Args:
        rewards: rewards of ``--rewards``.
        model: folder of the base model.
        pairs: whether a data file must have pairs.

    Raises:
        ConfigError: the data cannot be used.
    """
    if isinstance(data, Data):
        return fill_cache(data, model)
    examples = read_examples(data.path, with_rewards=not rewards.by_name)
    if examples.pairs != pairs:
        content = "pairs, which require" if examples.pairs else "no pairs, which are required by"
        raise ConfigError(f"--data {data.path} has {content} --method bt")
    if not (examples.pairs or examples.names or rewards.by_name):
        raise ConfigError(f"--data {data.path} has no rewards; --rewards is required")
    return cache_examples(data, examples, model)


def _check_ended(job: TrainingJob, cache: FilledCache) -> None:
    """Checks that enough responses have a reward, before any is scored."""
    if cache.pairs:
        return
    for name in cache.counts:
        ended = CachedRollouts(cache.folder, name, cut_ends=job.score_cut).ended
        count, required = int(ended.sum()), 2 if name == "train" else 1
        if count < required:
            data = job.data
            limit = f" within --max-tokens {data.max_tokens}" if isinstance(data, Data) else ""
            remedy = "" if job.score_cut else "; --score-cut gives cut responses a reward"
            raise ConfigError(
                f"{count} of {len(ended)} responses of the {name} set ended{limit}, and at least "
                f"{required} must have a reward{remedy}"
            )


def _base(job: TrainingJob, model: Path) -> Base | None:
    """The base model's output layer; None if unavailable and only the report would use it."""
    reported = job.head.architecture in QHead.architectures and job.method != "bt"
    if not (reported or job.needs_base):
        return None
    try:
        return Backbone(model).base(job.data.temperature)
    except ConfigError:
        if job.needs_base:
            raise
        return None


def _write(
    job: TrainingJob,
    cache: FilledCache,
    head: Head,
    fitted: FitReport,
    report: HeadReport | PairReport,
) -> None:
    how = _settings(job, cache)
    content = {"how": how, "fit": asdict(fitted), "held_out": asdict(report)}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    (job.out / "report.json").write_text(text, encoding="utf-8")
    losses = list(zip(fitted.train_loss, fitted.held_out_loss, strict=True))
    if isinstance(report, PairReport):
        draw_pairs(report, losses, job.out / _PLOT)
        section = pair_markdown(report)
    else:
        draw(report, losses, job.out / _PLOT)
        section = markdown(report)
    settings = "\n".join(
        f"- {_CARD_LABELS.get(key, key)}: {value}"
        for key, value in how.items()
        if value is not None
    )
    head.report = f"## Training\n\n{settings}\n\n{section}\n![report]({_PLOT})\n"
    head.save_pretrained(job.out)


def _settings(job: TrainingJob, cache: FilledCache) -> dict[str, Any]:
    data = job.data
    return {
        "method": job.method,
        "lambda": job.lam,
        "started from": job.head.start and job.head.start.name,
        "teacher": job.teacher and job.teacher.name,
        **_source(data),
        "cut responses": _cut_responses(cache) if job.score_cut else None,
        "temperature": data.temperature,
        **asdict(job.options),
    }


def _source(data: Data | DataFile) -> dict[str, Any]:
    if isinstance(data, DataFile):
        return {"data": data.path.name}
    return {"responses a prompt": data.per_prompt, "max_tokens": data.max_tokens}


def _cut_responses(cache: FilledCache) -> str:
    ended = CachedRollouts(cache.folder, "test").ended
    return f"scored as they stand ({int((~ended).sum())} of {len(ended)} in the test set)"
