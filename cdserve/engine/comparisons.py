"""Comparisons of responses by a pairwise judge, until its timeout or the deadline."""

import asyncio
import time
from collections.abc import Sequence

from cdserve.decoders.candidate import Comparison
from cdserve.engine.context import AlignmentContext
from cdserve.errors import JudgeFailure, RewardFailure
from cdserve.observability.metrics import COMPARISONS
from cdserve.scoring import report_failure


class Comparer:
    """Compares the candidates of one decision.

    Args:
        context: the policy and its judge.
        request_id: id of the request in the log.
    """

    def __init__(self, context: AlignmentContext, request_id: str) -> None:
        self._context = context
        self._request_id = request_id
        self._until: float | None = None
        """End of the judge's time, which begins with the first pair, by ``time.monotonic``."""

    async def compare(
        self, prompt: str, pairs: Sequence[tuple[str, str]]
    ) -> list[Comparison | None]:
        """Result of each pair of texts; None for pairs that the deadline leaves uncompared.

        Raises:
            ScoringError: the judge failed or took too long, and its ``on_failure`` is ``error``.
            JudgeFailure: the same for ``skip`` and ``base``.
        """
        judge, name = self._context.judge, self._context.policy.pairwise_judge
        assert judge is not None
        assert name is not None
        if self._context.deadline_passed:
            return [None] * len(pairs)
        tasks = [asyncio.create_task(judge.compare(prompt, a, b)) for a, b in pairs]
        try:
            return await self._results(tasks, name, judge.timeout)
        except Exception as error:
            on_failure, details = judge.on_failure, self._context.objective.details
            subject = f"pairwise judge {name!r}"
            report_failure(name, subject, error, on_failure, details, self._request_id)
            assert on_failure != "error"
            raise JudgeFailure(name, on_failure) from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _results(
        self, tasks: Sequence["asyncio.Task[Comparison]"], name: str, timeout: float
    ) -> list[Comparison | None]:
        """Results of the tasks that end in time.

        Raises:
            RewardFailure: the judge's time is up.
            Exception: the first one of a task.
        """
        now = time.monotonic()
        self._until = self._until or now + timeout
        left = self._context.seconds_left
        at_deadline = left is not None and now + left < self._until
        seconds = left if at_deadline else self._until - now
        done, pending = await asyncio.wait(
            tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION
        )
        results = [task.result() if task in done else None for task in tasks]
        for result in filter(None, results):
            COMPARISONS.labels(name, "agreed" if result.agreed else "disagreed").inc()
        if pending and not at_deadline:
            raise RewardFailure(f"took longer than its timeout of {timeout:g} s")
        return results
