"""Runs a collection: requests the missing answers, then writes the formats."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from cdserve.client.journal import Journal
from cdserve.client.server import serving
from cdserve.client.settings import check_settings, read_settings
from cdserve.collection.ask import ask
from cdserve.collection.card import DataSet
from cdserve.collection.derive import derive
from cdserve.collection.job import BUILT_IN, CollectionJob, check_formats
from cdserve.collection.prompt_result import PromptResult, read_record
from cdserve.errors import ConfigError, safe_repr

ANSWERS = "answers.jsonl"


@dataclass(slots=True, kw_only=True)
class CollectionResult:
    """Counts of a collection.

    Attributes:
        responses: number of responses to all prompts.
        scores: score of the returned response of each answered prompt.
        refused: the server's message for each refused prompt, by index.
        data_sets: the data sets written.
    """

    responses: int = 0
    scores: list[float] = field(default_factory=list)
    refused: Mapping[int, str] = field(default_factory=dict)
    data_sets: list[DataSet] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Number of answered prompts."""
        return len(self.scores)

    @property
    def mean_score(self) -> float:
        """Mean score of the returned responses; needs at least one."""
        return fmean(self.scores)

    def count(self, result: PromptResult) -> None:
        """Adds a prompt's responses to the counts."""
        self.responses += len(result.responses)
        self.scores.append(result.chosen.score)


def collect(job: CollectionJob) -> CollectionResult:
    """Requests the missing answers and writes the formats.

    Raises:
        ConfigError: the settings differ from those of the answers in the folder, the server cannot
            honour the policy, or it fails. Answers received until then are kept.
    """
    collected = CollectionResult()
    settings = read_settings(job.out)
    if settings is not None:
        check_settings(job.out, settings, job.settings)
        # Folders of earlier versions have answers of built-in methods only.
        settings.setdefault("whole_responses", BUILT_IN.get(settings["alignment"]["method"], False))
    _check_formats(job, settings)
    with Journal(job.out / ANSWERS, key="index") as journal:
        if settings is None and len(journal):
            raise ConfigError(f"{job.out} has {ANSWERS} but no settings.json")
        _check_prompts(job, journal)
        missing = [index for index in range(len(job.prompts)) if index not in journal]
        if settings is None or missing:
            with serving(job.server) as url:
                settings, collected.refused = asyncio.run(ask(job, url, journal, settings, missing))
        if len(collected.refused) == len(job.prompts):
            raise ConfigError(f"the server refused every prompt; the first: {collected.refused[0]}")
        results = _results(job, journal, settings, collected)
        collected.data_sets = derive(job, results, settings)
    return collected


def _check_formats(job: CollectionJob, settings: Mapping[str, Any] | None) -> None:
    """Checks the formats if the method's candidates are known without the server.

    Presets and methods of other packages are resolved by the server.

    Raises:
        ConfigError: the formats cannot be made from the method's answers.
    """
    policy = job.policy.alignment if settings is None else settings["alignment"]
    if not isinstance(policy, dict):
        return
    method, methods = policy["method"], BUILT_IN
    if settings is not None:
        methods = {**BUILT_IN, method: settings["whole_responses"]}
    if method in {*methods, "none"}:
        check_formats(method, methods, job.formats, job.filters)


def _check_prompts(job: CollectionJob, journal: Journal) -> None:
    for record in journal:
        index = record["index"]
        if index < len(job.prompts) and record["prompt"] != job.prompts[index]:
            raise ConfigError(
                f"--out {job.out} has an answer to {safe_repr(record['prompt'])} as prompt "
                f"{index + 1}, but --prompts has {safe_repr(job.prompts[index])}; "
                "choose another folder"
            )


def _results(
    job: CollectionJob, journal: Journal, settings: Mapping[str, Any], collected: CollectionResult
) -> Iterator[PromptResult]:
    """The results of the job's prompts; adds each to ``collected``."""
    for record in journal:
        if record["index"] < len(job.prompts):
            whole = settings["whole_responses"]
            result = read_record(record, list(settings["rewards"]), whole)
            collected.count(result)
            yield result
