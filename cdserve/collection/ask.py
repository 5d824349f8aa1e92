"""Requests the missing answers from a server and saves each as it arrives."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from openai import APIError, BadRequestError
from tqdm import tqdm

from cdserve import __version__
from cdserve.client.answers import Answer, Client
from cdserve.client.journal import Journal
from cdserve.client.settings import check_settings, write_settings
from cdserve.collection.job import CollectionJob, check_formats, resolve
from cdserve.errors import ConfigError

_PROMPT_FIELDS = ("prompt", "messages", "input_tokens", "max_tokens", "max_completion_tokens")
"""Fields whose refusal concerns one prompt; other prompts may still be answered."""


async def ask(
    job: CollectionJob,
    url: str,
    journal: Journal,
    kept: Mapping[str, Any] | None,
    missing: Sequence[int],
) -> tuple[dict[str, Any], dict[int, str]]:
    """Adds the missing answers to the journal.

    Args:
        url: base URL of the server.
        kept: settings of the answers in the journal; None if it is empty.
        missing: indices of the prompts without an answer.

    Returns:
        The settings, and the server's message for each refused prompt, by index.

    Raises:
        ConfigError: the server's settings differ from those of the kept answers, it cannot honour
            the policy, or it fails.
    """
    async with job.server.client(url) as client:
        described = await client.describe()
        methods = {
            name: bool(schema.get("whole_responses"))
            for name, schema in described["methods"].items()
        }
        settings = _settings(job, client.model, described, methods)
        method = settings["alignment"]["method"]
        methods[method] = settings["whole_responses"]
        check_formats(method, methods, job.formats, job.filters)
        if kept is None:
            write_settings(job.out, settings)
        else:
            check_settings(job.out, {**kept, "cdserve": __version__}, settings)
        done = len(job.prompts) - len(missing)
        with tqdm(total=len(job.prompts), initial=done, unit="prompt") as bar:
            alignment = {**settings["alignment"], "report": "trace"}
            workers = _Workers(job, client, alignment, journal, bar)
            await workers.answer(missing)
    return settings, workers.refused


@dataclass(slots=True)
class _Workers:
    """Concurrent workers that share one iterator of prompts."""

    job: CollectionJob
    client: Client
    alignment: Mapping[str, Any]
    journal: Journal
    bar: "tqdm[Any]"
    refused: dict[int, str] = field(default_factory=dict)

    async def answer(self, missing: Sequence[int]) -> None:
        shared = iter(missing)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.job.server.concurrency, len(missing))):
                    group.create_task(self._work(shared))
        except* ConfigError as errors:
            raise errors.exceptions[0] from None

    async def _work(self, indices: Iterator[int]) -> None:
        for index in indices:
            try:
                self.journal.add(await self._record(index))
            except ConfigError as error:
                if not _refuses_prompt(error):
                    raise ConfigError(f"prompt {index + 1}: {error}") from error
                self.refused[index] = str(error)
            self.bar.update()

    async def _record(self, index: int) -> dict[str, Any]:
        job = self.job
        prompt, seed = job.prompts[index], job.seed_of(index)
        answer = await self.client.answer(prompt, self.alignment, job.sampling, seed)
        return {"index": index, "prompt": prompt, "seed": seed, **_fields(answer)}


def _fields(answer: Answer) -> dict[str, Any]:
    if answer.report is None:
        raise ConfigError(f"the answer ended ({answer.finish_reason}) without a report")
    fields = asdict(answer)
    del fields["blocks"]
    return fields


def _refuses_prompt(error: ConfigError) -> bool:
    cause = error.__cause__
    if isinstance(cause, BadRequestError) and cause.param is None:
        return True  # how vLLM reports messages that the chat template refuses
    return isinstance(cause, APIError) and cause.param in _PROMPT_FIELDS


def _settings(
    job: CollectionJob, model: str, described: Mapping[str, Any], methods: Mapping[str, bool]
) -> dict[str, Any]:
    """How answers are drawn, including the server's description of the policy's rewards."""
    alignment = resolve(job.policy, described["presets"])
    default = [name for name, reward in described["rewards"].items() if reward["default"]]
    return {
        "cdserve": __version__,
        "model": model,
        **job.settings,
        "alignment": alignment,
        "whole_responses": methods.get(alignment["method"], False)
        and alignment.get("race") is None,
        "rewards": {
            name: described["rewards"].get(name, {}) for name in alignment.get("rewards") or default
        },
    }
