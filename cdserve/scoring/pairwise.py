"""A language model that says which of two responses is better."""

import re
from collections.abc import Sequence

from cdserve.decoders.candidate import Comparison
from cdserve.errors import RewardFailure, safe_repr
from cdserve.scoring.batching import Batcher
from cdserve.scoring.judge import Ask, fill
from cdserve.scoring.reward import OnFailure

VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}
"""Wins of the response that stands first in the question, by the judge's verdict."""


class PairwiseJudge:
    """A judge that compares two responses, and is asked in both orders.

    The responses are inserted into the question as they are, so they can address the judge.

    Args:
        ask: sends a question.
        template: the question, with the placeholders ``{prompt}``, ``{first}`` and ``{second}``.
        verdict: pattern whose group is the verdict in an answer, a key of ``VERDICTS``.
        concurrency: questions at the same time, over all requests.
        on_failure: what a decision does if the judge fails.
        timeout: seconds for all comparisons of a decision.
    """

    def __init__(
        self,
        ask: Ask,
        template: str,
        verdict: str,
        *,
        concurrency: int,
        on_failure: OnFailure,
        timeout: float,
    ) -> None:
        self._ask = ask
        self._template = template
        self._verdict = re.compile(verdict)
        self.on_failure: OnFailure = on_failure
        self.timeout = timeout
        self._queue: Batcher[tuple[str, str, str], float] = Batcher(
            self._verdicts, max_batch=1, max_wait=0, concurrency=concurrency
        )

    async def compare(self, prompt: str, a: str, b: str) -> Comparison:
        """Compares two responses to one prompt.

        Raises:
            RewardFailure: the endpoint fails, or an answer has no verdict.
        """
        first, second = await self._queue.score([(prompt, a, b), (prompt, b, a)])
        return Comparison((first + 1.0 - second) / 2.0, agreed=first == 1.0 - second)

    async def _verdicts(self, questions: Sequence[tuple[str, str, str]]) -> list[float]:
        return [
            self._read(
                await self._ask(fill(self._template, prompt=prompt, first=first, second=second))
            )
            for prompt, first, second in questions
        ]

    def _read(self, answer: str) -> float:
        found = None
        for match in self._verdict.finditer(answer):
            found = match[1]
        if found not in VERDICTS:
            said = "no verdict" if found is None else f"the verdict {safe_repr(found)}"
            raise RewardFailure(f"failed: the judge gave {said}", f"it ends {answer[-80:]!r}")
        return VERDICTS[found]
