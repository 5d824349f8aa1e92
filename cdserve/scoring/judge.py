"""A language model's grade as a reward, from any OpenAI-compatible endpoint."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from cdserve.errors import RewardFailure
from cdserve.scoring.batching import Batcher
from cdserve.scoring.reward import Response, Reward

Ask = Callable[[str], Awaitable[str]]
"""Sends a question to the judge; gives its answer."""


class Judge(Reward):
    """The grade that a judge gives a finished response: the last number of its answer.

    A response can talk to its judge: what it says is put into the question as it is.

    Args:
        ask: sends a question.
        rubric: the question, with ``{prompt}`` and ``{response}`` where they go.
        low, high: the grades that are accepted.
        concurrency: questions at once, over all requests.
    """

    kind: ClassVar[str] = "judge"
    reads_text = True

    def __init__(self, ask: Ask, rubric: str, low: float, high: float, concurrency: int) -> None:
        self._ask = ask
        self._rubric = rubric
        self._low = low
        self._high = high
        self._queue: Batcher[tuple[str, str], float] = Batcher(
            self._grades, max_batch=1, max_wait=0, concurrency=concurrency
        )

    async def score(self, responses: Sequence[Response]) -> list[float]:
        return await self._queue.score([(one.prompt, one.text) for one in responses])

    async def _grades(self, items: Sequence[tuple[str, str]]) -> list[float]:
        return [self._read(await self._ask(self._question(*item))) for item in items]

    def _question(self, prompt: str, response: str) -> str:
        parts = {"{prompt}": prompt, "{response}": response}
        return re.sub(r"\{prompt\}|\{response\}", lambda found: parts[found[0]], self._rubric)

    def _read(self, answer: str) -> float:
        numbers = re.findall(r"-?\d+(?:\.\d+)?", answer)
        if not numbers:
            raise RewardFailure("failed: the judge gave no number", f"it ends {answer[-80:]!r}")
        grade = float(numbers[-1])
        if not self._low <= grade <= self._high:
            raise RewardFailure(
                f"failed: the judge gave {grade:g}; grades are from {self._low:g} to {self._high:g}"
            )
        return grade


def endpoint(
    url: str, model: str, api_key: str, *, timeout: float, retries: int, max_tokens: int
) -> Ask:
    """An OpenAI-compatible chat endpoint, asked at temperature 0.

    Args:
        url: up to and including ``/v1``.
        timeout: seconds for one attempt.
        retries: of attempts that fail by no fault of the question's.
        max_tokens: of an answer.

    Its questions raise RewardFailure where the endpoint does not answer, or with an error.
    """
    # Half a second to import, for this alone.
    from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI

    client = AsyncOpenAI(base_url=url, api_key=api_key, timeout=timeout, max_retries=retries)

    async def ask(question: str) -> str:
        try:
            made = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=max_tokens,
            )
        except APITimeoutError as error:
            raise RewardFailure("failed: the judge did not answer in time", url) from error
        except APIConnectionError as error:
            raise RewardFailure("failed: the judge cannot be reached", url) from error
        except APIStatusError as error:
            reason = f"failed: the judge answered with status {error.status_code}"
            raise RewardFailure(reason, f"{url}: {error.message}") from error
        return made.choices[0].message.content or ""

    return ask
