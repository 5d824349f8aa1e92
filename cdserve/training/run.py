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
from cdserve.training.plot import draw
from cdserve.training.score import score
from value_heads import (
    Base,
    CachedRollouts,
    FitReport,
    Head,
    HeadReport,
    QHead,
    fit,
    markdown,
    measure,
)

_WEIGHTS = "model.safetensors"
_CHECKPOINT = "checkpoint.pt"
_PLOT = "report.png"
_CARD_LABELS = {"responses a prompt": "responses per prompt"}  # a key of report.json stays


def train(job: TrainingJob) -> HeadReport:
    """Trains the head and writes its folder: weights, model card, ``report.json``, ``report.png``.

    An interrupted run resumes with the responses and states in the cache and from the last epoch.

    Raises:
        ConfigError: the folder already has a head, or an input cannot be used.
    """
    if (job.out / _WEIGHTS).exists():
        raise ConfigError(f"--out {job.out} already has a head; choose another folder")
    model = _folder(job.data.model)
    cache = _fill_cache(job, model)
    _check_ended(job, cache)
    scores = score(job, cache)
    shards = {
        name: CachedRollouts(cache.folder, name, rewards, cut_ends=job.score_cut)
        for name, rewards in scores.by_set.items()
    }
    head = new_head(job, model, cache.base_hash, scores)
    base = _base(job, model)
    job.out.mkdir(parents=True, exist_ok=True)
    checkpoint = job.out / _CHECKPOINT
    try:
        fitted = fit(
            head,
            shards["train"],
            shards["validation"],
            method(job),
            job.options,
            base=base,
            checkpoint=checkpoint,
            progress=True,
        )
        report = measure(head, shards["test"], base)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _write(job, cache, head, fitted, report)
    checkpoint.unlink()
    return report


def _folder(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))


def _fill_cache(job: TrainingJob, model: Path) -> FilledCache:
    if isinstance(job.data, Data):
        return fill_cache(job.data, model)
    examples = read_examples(job.data.path)
    if examples.pairs:
        raise ConfigError(f"--data {job.data.path} has pairs, from which no method learns rewards")
    if not (examples.names or job.rewards.by_name):
        raise ConfigError(f"--data {job.data.path} has no rewards; --rewards is required")
    return cache_examples(job.data, examples, model)


def _check_ended(job: TrainingJob, cache: FilledCache) -> None:
    """Checks that enough responses have a reward, before any is scored."""
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
    if job.head.architecture not in QHead.architectures and not job.needs_base:
        return None
    try:
        return Backbone(model).base(job.data.temperature)
    except ConfigError:
        if job.needs_base:
            raise
        return None


def _write(
    job: TrainingJob, cache: FilledCache, head: Head, fitted: FitReport, report: HeadReport
) -> None:
    how = _settings(job, cache)
    content = {"how": how, "fit": asdict(fitted), "held_out": asdict(report)}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    (job.out / "report.json").write_text(text, encoding="utf-8")
    draw(report, list(zip(fitted.train_loss, fitted.held_out_loss, strict=True)), job.out / _PLOT)
    settings = "\n".join(
        f"- {_CARD_LABELS.get(key, key)}: {value}"
        for key, value in how.items()
        if value is not None
    )
    head.report = f"## Training\n\n{settings}\n\n{markdown(report)}\n![report]({_PLOT})\n"
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
