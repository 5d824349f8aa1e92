"""A collection from beginning to end: what is missing is asked for, then the files are derived."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from cdserve.client.journal import Journal
from cdserve.client.server import serving
from cdserve.client.settings import check_settings, read_settings
from cdserve.collection.answered import Answered, read_answer
from cdserve.collection.ask import ask
from cdserve.collection.card import DataSet
from cdserve.collection.derive import derive
from cdserve.collection.job import Job, check_formats
from cdserve.errors import ConfigError, safe_repr

ANSWERS = "answers.jsonl"


@dataclass(slots=True, kw_only=True)
class Collected:
    """What a collection came to.

    Attributes:
        scores: of the responses that the policy returned.
        refused: the server's words by the index of the prompt that it does not answer.
    """

    responses: int = 0
    scores: list[float] = field(default_factory=list)
    refused: Mapping[int, str] = field(default_factory=dict)
    made: list[DataSet] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Prompts that have an answer."""
        return len(self.scores)

    @property
    def mean_score(self) -> float:
        """Of the responses returned; there is at least one."""
        return fmean(self.scores)

    def count(self, answered: Answered) -> None:
        """Counts one more."""
        self.responses += len(answered.responses)
        self.scores.append(answered.chosen.score)


def collect(job: Job) -> Collected:
    """Asks for the answers that are missing, and writes the formats.

    Raises:
        ConfigError: the settings are not those of the answers in the folder, the policy cannot be
            honoured, or the server fails. Answers that have come are kept.
    """
    found = Collected()
    settings = read_settings(job.out)
    if settings is not None:
        check_settings(job.out, settings, job.settings)
    policy = job.policy.alignment if settings is None else settings["alignment"]
    if isinstance(policy, dict):  # what a preset's name stands for is the server's to say
        check_formats(policy["method"], job.formats, job.filters)
    with Journal(job.out / ANSWERS, key="index") as journal:
        if settings is None and len(journal):
            raise ConfigError(f"{job.out / ANSWERS} has answers, but no settings beside it")
        _check_prompts(job, journal)
        missing = [index for index in range(len(job.prompts)) if index not in journal]
        if settings is None or missing:
            with serving(job.url, job.config, job.flags) as url:
                settings, found.refused = asyncio.run(ask(job, url, journal, settings, missing))
        if len(found.refused) == len(job.prompts):
            raise ConfigError(f"every prompt is refused; the first: {found.refused[0]}")
        found.made = derive(job, _answers(job, journal, settings, found), settings)
    return found


def _check_prompts(job: Job, journal: Journal) -> None:
    for record in journal:
        index = record["index"]
        if index < len(job.prompts) and record["prompt"] != job.prompts[index]:
            raise ConfigError(
                f"--out {job.out} has an answer to {safe_repr(record['prompt'])} as prompt "
                f"{index + 1}, and --prompts has {safe_repr(job.prompts[index])} there; name "
                "another folder"
            )


def _answers(
    job: Job, journal: Journal, settings: Mapping[str, Any], found: Collected
) -> Iterator[Answered]:
    """The answers to the job's prompts, each counted."""
    for record in journal:
        if record["index"] < len(job.prompts):
            answered = read_answer(record, list(settings["rewards"]))
            found.count(answered)
            yield answered
