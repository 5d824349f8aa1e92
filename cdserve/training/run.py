"""Trains one head: responses, states, rewards, fit, report. Each goes on where it stopped."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from cdserve.errors import ConfigError
from cdserve.training.backbone import Backbone
from cdserve.training.collect import collect
from cdserve.training.head import method, new_head
from cdserve.training.job import Job
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


def train(job: Job) -> HeadReport:
    """Trains the head and writes its folder: weights, model card, ``report.json``, ``report.png``.

    A run that was stopped goes on when it is asked for again: with the responses and states that
    are in the cache, and from the last epoch.

    Raises:
        ConfigError: the folder holds a head already, or something asked for cannot be used.
    """
    if (job.out / _WEIGHTS).exists():
        raise ConfigError(f"--out {job.out} holds a head already; name another folder")
    model = _folder(job.data.model)
    collection = collect(job.data, model)
    rewards = {name: score(job, collection, name) for name in collection.sets}
    shards = {name: CachedRollouts(collection.folder, name, rewards[name]) for name in rewards}
    head = new_head(job, model, collection.base_hash, rewards["train"])
    base, how = _base(job, model), method(job)
    job.out.mkdir(parents=True, exist_ok=True)
    checkpoint = job.out / _CHECKPOINT
    try:
        fitted = fit(
            head,
            shards["train"],
            shards["validation"],
            how,
            job.options,
            base=base,
            checkpoint=checkpoint,
            progress=True,
        )
        report = measure(head, shards["test"], base)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _write(job, head, fitted, report)
    checkpoint.unlink()
    return report


def _folder(model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))


def _base(job: Job, model: Path) -> Base | None:
    """The base model's output layer; it may be missing where only the report would read it."""
    if job.architecture not in QHead.architectures and not job.needs_base:
        return None
    try:
        return Backbone(model).base(job.data.temperature)
    except ConfigError:
        if job.needs_base:
            raise
        return None


def _write(job: Job, head: Head, fitted: FitReport, report: HeadReport) -> None:
    made = {"how": _how(job), "fit": asdict(fitted), "held_out": asdict(report)}
    text = json.dumps(made, indent=2, allow_nan=False) + "\n"
    (job.out / "report.json").write_text(text, encoding="utf-8")
    draw(report, list(zip(fitted.train_loss, fitted.held_out_loss, strict=True)), job.out / _PLOT)
    how = "\n".join(f"- {key}: {value}" for key, value in _how(job).items() if value is not None)
    head.report = f"## How it was trained\n\n{how}\n\n{markdown(report)}\n![report]({_PLOT})\n"
    head.save_pretrained(job.out)


def _how(job: Job) -> dict[str, Any]:
    data = job.data
    return {
        "method": job.method,
        "lambda": job.lam,
        "started from": job.start and job.start.name,
        "teacher": job.teacher and job.teacher.name,
        "responses a prompt": data.per_prompt,
        "max_tokens": data.max_tokens,
        "temperature": data.temperature,
        **asdict(job.options),
    }
