"""A language model's grade as a reward, from any OpenAI-compatible endpoint."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar

from cdserve.errors import RewardFailure
from cdserve.scoring.batching import Batcher
from cdserve.scoring.endpoint import Endpoint
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
        return [
            self._read(await self._ask(fill(self._rubric, prompt=prompt, response=response)))
            for prompt, response in items
        ]

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


def fill(template: str, **texts: str) -> str:
    """A template with the texts in place of their names in braces, such as ``{prompt}``."""
    return re.sub(rf"\{{({'|'.join(texts)})\}}", lambda match: texts[match[1]], template)


def chat_model(
    endpoint: Endpoint,
    model: str,
    max_tokens: int = 512,
    extra_body: Mapping[str, Any] | None = None,
) -> Ask:
    """A model behind an OpenAI-compatible chat endpoint, asked at temperature 0.

    Questions raise RewardFailure if the endpoint does not answer, or answers with an error.

    Args:
        endpoint: the endpoint, whose URL includes ``/v1``.
        model: model id.
        max_tokens: most tokens of an answer.
        extra_body: further fields of each request.
    """

    async def ask(question: str) -> str:
        with endpoint.failures("/chat/completions"):
            completion = await endpoint.client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                temperature=0,
                max_tokens=max_tokens,
                extra_body=extra_body,
            )
        return completion.choices[0].message.content or ""

    return ask
