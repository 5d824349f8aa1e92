"""Runs an evaluation: requests the missing answers, then writes results, report and plots."""

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
from cdserve.evaluation.job import BASE, EvaluationJob
from cdserve.evaluation.markdown import markdown
from cdserve.evaluation.plots import draw
from cdserve.evaluation.records import Record, key, record, seed_of
from cdserve.evaluation.results import Results, is_best_of_n, results
from cdserve.evaluation.rewards import Rewards
from cdserve.evaluation.settings import check, journal_of
from cdserve.prompts import Prompt, read_prompts

_PLAIN = NamedPolicy(BASE, {"method": "none"})


async def evaluate(job: EvaluationJob, client: Client) -> Results:
    """Evaluates all policies; writes ``results.json``, ``report.md`` and the plots.

    Answers in the folder's records are not requested again.

    Raises:
        ConfigError: the server lacks a policy or a reward, or a request fails. Answers received
            until then are kept.
    """
    prompts = read_prompts(job.prompts)[: job.limit]
    server = await client.describe()
    rewards = Rewards(job.reward, job.gold, server)
    definitions = {policy.name: _resolve(policy, server) for policy in (_PLAIN, *job.policies)}
    names = {"reward": rewards.name, "gold": rewards.gold}
    settings = check(job, client.model, names, definitions)
    records = await _Run(job, client, prompts, rewards, settings).records()
    evaluated = results(
        job.policies, records, command=job.command, settings=settings, draws=job.draws
    )
    evaluated.write(job.out / "results.json")
    draw(evaluated, job.out)
    (job.out / "report.md").write_text(markdown(evaluated), encoding="utf-8")
    return evaluated


def _resolve(policy: NamedPolicy, server: Mapping[str, Any]) -> dict[str, Any]:
    """The policy as an object; a preset is looked up on the server."""
    alignment, presets, methods = policy.alignment, server["presets"], server["methods"]
    if isinstance(alignment, str):
        if alignment not in presets:
            raise ConfigError(
                f"policy {safe_repr(policy.name)}: the server has no preset "
                f"{safe_repr(alignment)}; it has "
                f"{', '.join(presets) or 'none'}. If this is not a preset, write "
                "'METHOD FIELD=VALUE ...'."
            )
        return {"preset": alignment, **presets[alignment]}
    if alignment["method"] not in methods:
        raise ConfigError(
            f"policy {safe_repr(policy.name)}: the server has no method "
            f"{safe_repr(alignment['method'])}; "
            f"it has {', '.join(methods)}"
        )
    return alignment


@dataclass(frozen=True, slots=True)
class _Run:
    job: EvaluationJob
    client: Client
    prompts: Sequence[Prompt]
    rewards: Rewards
    settings: Mapping[str, Any]

    async def records(self) -> dict[str, list[Record]]:
        """The records by policy, ordered by prompt and draw; requests the missing answers."""
        policies = (_PLAIN, *self.job.policies)
        with ExitStack() as stack:
            journals = {
                policy.name: stack.enter_context(Journal(journal_of(self.job.out, policy.name)))
                for policy in policies
            }
            # One trial answer per policy first, so that a policy that the server refuses fails at
            # once. Trial answers are dropped: their latency is that of a cold server.
            incomplete = [policy for policy in policies if self._missing(journals[policy.name])]
            await _together(self._ask(policy, 0, 0) for policy in incomplete)
            write_settings(self.job.out, self.settings)
            for policy in policies:
                await self._fill(policy, journals[policy.name])
            return {name: self._read(journal) for name, journal in journals.items()}

    async def _fill(self, policy: NamedPolicy, journal: Journal) -> None:
        missing = self._missing(journal)
        total = len(self.prompts) * self.job.draws
        shared = iter(missing)
        with tqdm(
            total=total, initial=total - len(missing), desc=policy.name, unit="answer"
        ) as bar:

            async def work() -> None:
                for prompt, draw in shared:
                    journal.add((await self._ask(policy, prompt, draw)).written())
                    bar.update()

            # Not more workers than the client runs requests: it serves in order, so the answers of
            # further workers would be scored and saved only after the last one is drawn.
            await _together(work() for _ in range(self.job.concurrency))

    def _read(self, journal: Journal) -> list[Record]:
        by_key = {fields["id"]: fields for fields in journal}
        return [Record.read(by_key[key(*answer)]) for answer in self._all()]

    def _missing(self, journal: Journal) -> list[tuple[int, int]]:
        return [answer for answer in self._all() if key(*answer) not in journal]

    def _all(self) -> Iterator[tuple[int, int]]:
        """Prompt and draw of every answer."""
        return product(range(len(self.prompts)), range(self.job.draws))

    async def _ask(self, policy: NamedPolicy, number: int, draw: int) -> Record:
        prompt, alignment = self.prompts[number], policy.alignment
        if isinstance(alignment, dict) and alignment["method"] != "none":
            alignment = {**alignment, "report": "trace"}
        definition = self.settings["policies"][policy.name]
        seed = seed_of(self.job.seed, policy.name, number, draw)
        try:
            answer = await self.client.answer(prompt, alignment, self.job.sampling, seed)
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


async def _together(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Runs all coroutines concurrently; the first error cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures.exceptions[0].__cause__
