"""Asks for all answers that are not there yet, and writes what they come to."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any

from tqdm import tqdm

from cdserve.client.answers import Client
from cdserve.client.journal import Journal
from cdserve.client.policies import NamedPolicy
from cdserve.client.settings import write_settings
from cdserve.errors import ConfigError, safe_repr
from cdserve.evaluation.job import BASE, Job
from cdserve.evaluation.markdown import markdown
from cdserve.evaluation.plots import draw
from cdserve.evaluation.records import Record, key, record, seed_of
from cdserve.evaluation.results import Results, is_best_of_n, results
from cdserve.evaluation.rewards import Rewards
from cdserve.evaluation.settings import check, journal_of
from cdserve.prompts import Prompt, read_prompts

_PLAIN = NamedPolicy(BASE, {"method": "none"})


async def evaluate(job: Job, client: Client) -> Results:
    """Asks, measures, and writes ``results.json``, ``report.md`` and the plots into the folder.

    Answers that are in the folder's records already are not asked for again.

    Raises:
        ConfigError: the server cannot do what is asked for, or a request fails; what was answered
            until then is kept.
    """
    prompts = read_prompts(job.prompts)[: job.limit]
    server = await client.describe()
    rewards = Rewards(job.reward, job.gold, server)
    definitions = {one.name: _resolved(one, server) for one in (_PLAIN, *job.policies)}
    named = {"reward": rewards.name, "gold": rewards.gold}
    settings = check(job, client.model, named, definitions)
    found = await _Run(job, client, prompts, rewards, settings).records()
    made = results(job.policies, found, command=job.command, settings=settings, draws=job.draws)
    made.write(job.out / "results.json")
    draw(made, job.out)
    (job.out / "report.md").write_text(markdown(made), encoding="utf-8")
    return made


def _resolved(policy: NamedPolicy, server: Mapping[str, Any]) -> dict[str, Any]:
    """What a policy is, a preset's name looked up."""
    sent, presets, methods = policy.alignment, server["presets"], server["methods"]
    if isinstance(sent, str):
        if sent not in presets:
            raise ConfigError(
                f"policy {safe_repr(policy.name)}: the server has no preset {safe_repr(sent)}; it "
                f"has {', '.join(presets) or 'none'}. A policy that is none has fields: "
                "'METHOD FIELD=VALUE ...'"
            )
        return {"preset": sent, **presets[sent]}
    if sent["method"] not in methods:
        raise ConfigError(
            f"policy {safe_repr(policy.name)}: the server has no method "
            f"{safe_repr(sent['method'])}; it has {', '.join(methods)}"
        )
    return sent


@dataclass(frozen=True, slots=True)
class _Run:
    job: Job
    client: Client
    prompts: Sequence[Prompt]
    rewards: Rewards
    settings: Mapping[str, Any]

    async def records(self) -> dict[str, list[Record]]:
        """All answers by policy, in the order of prompts and draws."""
        policies = (_PLAIN, *self.job.policies)
        with ExitStack() as stack:
            journals = {
                one.name: stack.enter_context(Journal(journal_of(self.job.out, one.name)))
                for one in policies
            }
            # Once under each policy first, so that one that the server refuses is known at once.
            # What comes back is dropped: its times are those of a server that has just begun.
            lacking = [one for one in policies if self._missing(journals[one.name])]
            await _together(self._ask(policy, 0, 0) for policy in lacking)
            write_settings(self.job.out, self.settings)
            for policy in policies:
                await self._fill(policy, journals[policy.name])
            return {name: self._read(journal) for name, journal in journals.items()}

    async def _fill(self, policy: NamedPolicy, journal: Journal) -> None:
        missing = self._missing(journal)
        total = len(self.prompts) * self.job.draws
        left = iter(missing)
        with tqdm(
            total=total, initial=total - len(missing), desc=policy.name, unit="answer"
        ) as bar:

            async def work() -> None:
                for prompt, draw in left:
                    journal.add((await self._ask(policy, prompt, draw)).written())
                    bar.update()

            # As many as run at once: the client serves in order, so with more of them no answer
            # would be scored, and kept, before the last one is drawn.
            await _together(work() for _ in range(self.job.concurrency))

    def _read(self, journal: Journal) -> list[Record]:
        found = {made["id"]: made for made in journal}
        return [Record.read(found[key(*one)]) for one in self._all()]

    def _missing(self, journal: Journal) -> list[tuple[int, int]]:
        return [one for one in self._all() if key(*one) not in journal]

    def _all(self) -> Iterator[tuple[int, int]]:
        return product(range(len(self.prompts)), range(self.job.draws))

    async def _ask(self, policy: NamedPolicy, number: int, draw: int) -> Record:
        prompt, sent = self.prompts[number], policy.alignment
        if isinstance(sent, dict) and sent["method"] != "none":
            sent = {**sent, "report": "trace"}
        definition = self.settings["policies"][policy.name]
        seed = seed_of(self.job.seed, policy.name, number, draw)
        try:
            answer = await self.client.answer(prompt, sent, self.job.sampling, seed)
            began = time.time() - answer.seconds
            rewards = await self.rewards.measure(self.client, number, prompt, answer.text)
        except ConfigError as error:
            raise ConfigError(
                f"policy {safe_repr(policy.name)}, prompt {number + 1}: {error}"
            ) from error
        return record(
            answer,
            prompt=number,
            draw=draw,
            seed=seed,
            began=began,
            rewards=rewards,
            pooled=self.rewards.name if is_best_of_n(definition) else None,
        )


async def _together(jobs: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Runs all at once; the first error of one ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures.exceptions[0].__cause__
