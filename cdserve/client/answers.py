"""Answers to prompts under a policy, streamed, with their reports and the times of their blocks."""

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
    """How tokens are drawn, the same for all policies of a run."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    logprobs: bool = False
    """Whether log p is asked for, which lets the server estimate KL."""

    def fields(self, chat: bool) -> dict[str, Any]:
        """The request's fields of a chat or a completion."""
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
    """What came back.

    Attributes:
        tokens: of the text, the end token included.
        report: the answer's ``alignment``; None where there is none.
        seconds: from the request to its end.
        blocks: seconds from the request to each piece of text, in order.
    """

    text: str = ""
    finish_reason: str | None = None
    tokens: int = 0
    report: dict[str, Any] | None = None
    seconds: float = 0.0
    blocks: list[float] = field(default_factory=list)


class Client:
    """Asks a server, a bounded number of requests at once; used as a context.

    Args:
        base_url: without ``/v1``.
        model: the id that requests name; None for the server's first.
        concurrency: requests at once.
        api_key: the server's, if it wants one.
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
            with _told("the server does not name its models"):
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
        """The id that requests name; known once the client is entered."""
        assert self._model is not None
        return self._model

    async def describe(self) -> Mapping[str, Any]:
        """What ``GET /v1/alignment`` says.

        Raises:
            ConfigError: the request fails; with the server's words.
        """
        with _told("the server does not say what it can do, as cdserve's does"):
            return await self._openai.get("/alignment", cast_to=dict[str, Any])

    async def prompt_text(self, prompt: Prompt) -> str:
        """What the server's rewards see as the prompt: of a chat, as its template writes it.

        Raises:
            ConfigError: the request fails; with the server's words.
        """
        if isinstance(prompt, str):
            return prompt
        made = await self._post(f"{self._base_url}/tokenize", {"messages": prompt})
        found = await self._post(f"{self._base_url}/detokenize", {"tokens": made["tokens"]})
        text: str = found["prompt"]
        return text

    async def answer(
        self,
        prompt: Prompt,
        alignment: Mapping[str, Any] | str | None,
        sampling: Sampling,
        seed: int | None,
    ) -> Answer:
        """One answer to a prompt.

        Raises:
            ConfigError: the request fails; with the server's words.
        """
        chat = not isinstance(prompt, str)
        create: Any = self._openai.chat.completions if chat else self._openai.completions
        sent = {"messages": prompt} if chat else {"prompt": prompt}
        async with self._slots:
            made, began = Answer(), time.perf_counter()
            with _told():
                stream = await create.create(
                    model=self._model,
                    seed=seed,
                    stream=True,
                    stream_options={"include_usage": True},
                    extra_body={} if alignment is None else {"alignment": alignment},
                    **sent,
                    **sampling.fields(chat),
                )
                async for chunk in stream:
                    _take(made, chunk, time.perf_counter() - began)
            made.seconds = time.perf_counter() - began
            return made

    async def score(
        self, prompt: Prompt, responses: Sequence[str], rewards: Sequence[str]
    ) -> list[dict[str, float]]:
        """The rewards of finished responses to a prompt, by name, raw.

        Raises:
            ConfigError: the request fails; with the server's words.
        """
        body = {
            "prompt": prompt,
            "responses": list(responses),
            "rewards": dict.fromkeys(rewards, 1.0),
        }
        made = await self._post("/alignment/score", body)
        return [score["rewards"] for score in made["scores"]]

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What a route answers; the path is one under ``/v1``, or a whole URL."""
        async with self._slots:
            with _told():
                return await self._openai.post(path, cast_to=dict[str, Any], body=body)


@contextmanager
def _told(what: str = "the server answers") -> Iterator[None]:
    """Turns an error of the API's into a ConfigError with the server's words."""
    try:
        yield
    except APIError as error:
        raise ConfigError(f"{what}: {error.message}") from error


def _take(made: Answer, chunk: Any, now: float) -> None:
    if chunk.usage is not None:
        made.tokens = chunk.usage.completion_tokens
    made.report = (chunk.model_extra or {}).get("alignment", made.report)
    for choice in chunk.choices:
        text = choice.text if hasattr(choice, "text") else choice.delta.content
        if text:
            made.text += text
            made.blocks.append(now)
        made.finish_reason = choice.finish_reason or made.finish_reason
