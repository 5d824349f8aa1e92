"""A language model's grade as a reward, from any OpenAI-compatible endpoint."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from cdserve.errors import RewardFailure
from cdserve.scoring.batching import Batcher
from cdserve.scoring.reward import Response, Reward

Ask = Callable[[str], Awaitable[str]]
"""Sends a question to the judge and returns the answer."""


class Judge(Reward):
    """A judge's grade of a finished response: the last number in the judge's answer.

    The response is inserted into the question as it is, so it can address the judge.

    Args:
        ask: sends a question.
        rubric: the question, with the placeholders ``{prompt}`` and ``{response}``.
        low, high: range of the accepted grades.
        concurrency: questions at the same time, over all requests.
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
        return await self._queue.score([(response.prompt, response.text) for response in responses])

    async def _grades(self, items: Sequence[tuple[str, str]]) -> list[float]:
        return [self._read(await self._ask(self._question(*item))) for item in items]

    def _question(self, prompt: str, response: str) -> str:
        parts = {"{prompt}": prompt, "{response}": response}
        return re.sub(r"\{prompt\}|\{response\}", lambda match: parts[match[0]], self._rubric)

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

    Questions raise RewardFailure if the endpoint does not answer, or answers with an error.

    Args:
        url: URL up to and including ``/v1``.
        timeout: seconds for one attempt.
        retries: retries of attempts that fail through no fault of the question.
        max_tokens: most tokens of an answer.
    """
    # Imported here: it takes half a second, and only judges need it.
    from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI

    client = AsyncOpenAI(base_url=url, api_key=api_key, timeout=timeout, max_retries=retries)

    async def ask(question: str) -> str:
        try:
            completion = await client.chat.completions.create(
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
        return completion.choices[0].message.content or ""

    return ask
