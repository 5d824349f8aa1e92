"""Streamed answers to prompts under a policy, with their reports and the times of their blocks."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from openai import APIError, AsyncOpenAI

from cdserve.errors import ConfigError
from cdserve.prompts import Prompt

TIMEOUT = 3600.0
RETRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters, the same for all policies of a run."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    logprobs: bool = False
    """Whether to request log-probabilities, from which the server estimates the KL divergence."""

    def fields(self, chat: bool) -> dict[str, Any]:
        """The fields of a chat request or a completion request."""
        fields: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        if self.logprobs:
            fields["logprobs"] = True if chat else 0
        return fields


@dataclass(slots=True, kw_only=True)
class Answer:
    """A complete answer.

    Attributes:
        tokens: length of the text, including the end token.
        report: the response's ``alignment``; None without one.
        seconds: time from the request to the end of the answer.
        blocks: seconds from the request to each piece of text, in order.
    """

    text: str = ""
    finish_reason: str | None = None
    tokens: int = 0
    report: dict[str, Any] | None = None
    seconds: float = 0.0
    blocks: list[float] = field(default_factory=list)


class Client:
    """Client of a server with bounded concurrency; an async context manager.

    Args:
        base_url: the server's URL, without ``/v1``.
        model: model id in the requests; None for the server's first model.
        concurrency: maximum number of concurrent requests.
        api_key: API key, if the server requires one.
    """

    def __init__(
        self, base_url: str, *, model: str | None = None, concurrency: int = 16, api_key: str = "-"
    ) -> None:
        self._base_url = base_url
        self._openai = AsyncOpenAI(
            base_url=f"{base_url}/v1", api_key=api_key, timeout=TIMEOUT, max_retries=RETRIES
        )
        self._model = model
        self._slots = asyncio.Semaphore(concurrency)

    async def __aenter__(self) -> Self:
        if self._model is None:
            with _as_config_error("GET /v1/models failed"):
                self._model = (await self._openai.models.list()).data[0].id
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._openai.close()

    @property
    def model(self) -> str:
        """The model id in the requests; set once the context is entered."""
        assert self._model is not None
        return self._model

    async def describe(self) -> Mapping[str, Any]:
        """The methods, rewards, members, presets and limits from ``GET /v1/alignment``.

        Raises:
            ConfigError: the request fails; includes the server's message.
        """
        with _as_config_error("GET /v1/alignment failed (is this a cdserve server?)"):
            return await self._openai.get("/alignment", cast_to=dict[str, Any])

    async def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as the server's rewards receive it: a chat rendered by its template.

        Raises:
            ConfigError: the request fails; includes the server's message.
        """
        if isinstance(prompt, str):
            return prompt
        tokenized = await self._post(f"{self._base_url}/tokenize", {"messages": prompt})
        body = {"tokens": tokenized["tokens"]}
        text: str = (await self._post(f"{self._base_url}/detokenize", body))["prompt"]
        return text

    async def answer(
        self,
        prompt: Prompt,
        alignment: Mapping[str, Any] | str | None,
        sampling: Sampling,
        seed: int | None,
    ) -> Answer:
        """Requests one answer to a prompt.

        Raises:
            ConfigError: the request fails; includes the server's message.
        """
        chat = not isinstance(prompt, str)
        create: Any = self._openai.chat.completions if chat else self._openai.completions
        prompt_field = {"messages": prompt} if chat else {"prompt": prompt}
        async with self._slots:
            answer, started_at = Answer(), time.perf_counter()
            with _as_config_error():
                stream = await create.create(
                    model=self._model,
                    seed=seed,
                    stream=True,
                    stream_options={"include_usage": True},
                    extra_body={} if alignment is None else {"alignment": alignment},
                    **prompt_field,
                    **sampling.fields(chat),
                )
                async for chunk in stream:
                    _update(answer, chunk, time.perf_counter() - started_at)
            answer.seconds = time.perf_counter() - started_at
            return answer

    async def score(
        self, prompt: Prompt, responses: Sequence[str], rewards: Sequence[str]
    ) -> list[dict[str, float]]:
        """Raw rewards by name of each finished response to a prompt.

        Raises:
            ConfigError: the request fails; includes the server's message.
        """
        body = {
            "prompt": prompt,
            "responses": list(responses),
            "rewards": dict.fromkeys(rewards, 1.0),
        }
        result = await self._post("/alignment/score", body)
        return [score["rewards"] for score in result["scores"]]

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON response to a POST request; the path is relative to ``/v1``, or a full URL."""
        async with self._slots:
            with _as_config_error():
                return await self._openai.post(path, cast_to=dict[str, Any], body=body)


@contextmanager
def _as_config_error(prefix: str = "the server answers") -> Iterator[None]:
    """Turns an API error into a ConfigError with the server's message."""
    try:
        yield
    except APIError as error:
        raise ConfigError(f"{prefix}: {error.message}") from error


def _update(answer: Answer, chunk: Any, seconds: float) -> None:
    if chunk.usage is not None:
        answer.tokens = chunk.usage.completion_tokens
    answer.report = (chunk.model_extra or {}).get("alignment", answer.report)
    for choice in chunk.choices:
        text = choice.text if hasattr(choice, "text") else choice.delta.content
        if text:
            answer.text += text
            answer.blocks.append(seconds)
        answer.finish_reason = choice.finish_reason or answer.finish_reason
