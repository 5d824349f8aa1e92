"""``POST /v1/alignment/score``: scores given responses with this server's rewards."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.utils import random_uuid

from cdserve.api.models import check_preset
from cdserve.api.server import AlignmentServer
from cdserve.decoders import Score
from cdserve.engine.aligned import AlignedEngine, salted
from cdserve.engine.prefill import TokenSequence
from cdserve.errors import ModelError, PolicyError, safe_key, safe_repr
from cdserve.policy import FIELD, Policy, parse_object
from cdserve.scoring import Floats, Objective, Response, token_sums
from cdserve.validation import explain, requirement
from cdserve.worker.request import WorkerRequest

_MAX_TOKEN_ID = 2**31 - 1


class ScoreRequest(BaseModel):
    """Request body of ``POST /v1/alignment/score``: responses to one prompt, scored as finished."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        default=None,
        description="Model id of the base model or of a preset; the base model if absent.",
    )
    prompt: str | list[int] | list[dict[str, Any]] = Field(
        description="Prompt as text, token ids or chat messages."
    )
    responses: list[str] = Field(
        min_length=1, description="Texts of the responses, at most `limits.max_n`."
    )
    rewards: dict[str, float] | None = Field(
        default=None,
        min_length=1,
        description="Weight of each reward; the server's default reward with weight 1 if absent.",
    )
    per_token: bool = Field(
        default=False,
        description="Whether to add the reward after each token of the response and after EOS, for "
        "the rewards that the engine computes.",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, sent: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Raises PolicyError, which FastAPI passes on, for an invalid field."""
        try:
            return handler(sent)
        except ValidationError as error:
            path, predicate = explain(error, cls, sent)
            if not path:
                raise PolicyError("body", f"is {safe_repr(sent)}; {predicate}") from error
            raise PolicyError(".".join(safe_key(str(step)) for step in path), predicate) from error


async def score(
    request: ScoreRequest, server: AlignmentServer, state: Any, client_id: str | None
) -> dict[str, Any]:
    """Scores the responses of a request; returns the body of the answer.

    Args:
        request: the request.
        server: the caller's view of the server.
        state: the app's state, with vLLM's serving code.
        client_id: the client's ``X-Request-Id``, for the log.

    Raises:
        ModelError: the model does not exist.
        PolicyError: a field is invalid, or a limit is exceeded.
    """
    await _check_model(request, server, state)
    if not request.prompt:
        raise PolicyError("prompt", "is empty; it takes text, token ids or chat messages")
    _check_token_ids(request.prompt)
    limit = server.settings.limits.max_n
    if len(request.responses) > limit:
        raise PolicyError(
            "responses",
            f"has {len(request.responses)} items; this server accepts 1 to {limit}",
            reason="limit",
        )
    objective = _objective(request, server)
    prompt = await _render_prompt(request, state)
    request_id = f"score-{client_id or random_uuid()}"
    scorer = _Scorer(state.engine_client, objective, prompt, request, request_id)
    try:
        return {"scores": await scorer.score(request.responses)}
    except VLLMClientError as error:  # the engine rejects the tokens of the prompt
        raise PolicyError("prompt", f"is invalid: {error.args[0]}") from error


async def _check_model(request: ScoreRequest, server: AlignmentServer, state: Any) -> None:
    """Checks that the model id is one of the base model's; replaces a preset's by the model's."""
    await check_preset(request, server, state)
    if server.preset_of(request.model) is not None:
        request.model = server.settings.model_name
    serving = state.openai_serving_completion
    if await serving._check_model(request) is not None:
        raise ModelError(
            f"model {safe_repr(request.model)} does not exist; this server scores with "
            f"{safe_repr(server.settings.model_name)}"
        )
    if request.model in serving.models.lora_requests:
        raise PolicyError(
            "model",
            f"is the adapter {safe_repr(request.model)}; this server scores with "
            f"{safe_repr(server.settings.model_name)}",
        )


class _Scorer:
    """Scores the responses of one request.

    Args:
        engine: computes values and statistics of tokens.
        objective: the rewards and their weights.
        prompt: vLLM's engine input, with ``prompt_token_ids``.
        request: the request.
        request_id: id for the log.
    """

    def __init__(
        self,
        engine: AlignedEngine,
        objective: Objective,
        prompt: dict[str, Any],
        request: ScoreRequest,
        request_id: str,
    ) -> None:
        self._engine = engine
        self._request_id = request_id
        self._objective = objective
        self._tokenizer = engine.renderer.get_tokenizer()
        self._prompt: list[int] = prompt["prompt_token_ids"]
        self._prompt_text = prompt.get("prompt") or self._tokenizer.decode(self._prompt)
        self._messages = _messages(request)
        self._per_token = request.per_token

    async def score(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Scores all responses together, like the candidates of one decision."""
        prefixes = await asyncio.gather(*map(self._prefixes, count(), texts))
        finished = [response_prefixes[-1] for response_prefixes in prefixes]
        scores = await self._objective.score(finished, self._request_id)
        return [await self._result(*pair) for pair in zip(scores, prefixes, strict=True)]

    async def _result(self, score: Score, prefixes: Sequence[Response]) -> dict[str, Any]:
        result: dict[str, Any] = {"score": score.total, "rewards": dict(score.rewards)}
        if score.failed:
            result["failed"] = list(score.failed)
        if self._per_token:
            result["per_token"] = await self._objective.per_token(prefixes, self._request_id)
        return result

    async def _prefixes(self, index: int, text: str) -> list[Response]:
        """The response; with ``per_token``, all its prefixes before it, shortest first."""
        token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        eos = self._tokenizer.eos_token_id
        response = [*token_ids, *([] if eos is None else [eos])]
        values, sums = await self._read(index, [*self._prompt, *response])
        most = len(response) if self._per_token else 1
        return [
            Response(
                prompt=self._prompt_text,
                text=text if missing == 0 else "",
                tokens=len(response) - missing,
                finished=missing == 0,
                values=values[-1 - missing] if values else {},
                token_sums={name: of[: len(response) - missing + 1] for name, of in sums.items()},
                messages=self._messages,
            )
            for missing in reversed(range(most))
        ]

    async def _read(
        self, index: int, token_ids: Sequence[int]
    ) -> tuple[list[Any], dict[str, Floats]]:
        """Reads V by reward and statistics of the response's tokens from the engine.

        Args:
            index: index of the response in the request.
            token_ids: the prompt and the response.

        Returns:
            V of each prefix that ends in the response, or of the whole text without
            ``per_token``; and the sums of each statistic (``scoring.token_sums``).

        Raises:
            PolicyError: prompt and response are too long for the model.
        """
        objective, start = self._objective, len(self._prompt)
        values: list[Any] = []
        sums: dict[str, Floats] = {}
        limit = self._engine.model_config.max_model_len - 1
        if (objective.reads_values or objective.token_stats) and len(token_ids) > limit:
            raise PolicyError(
                f"responses.{index}",
                f"has {len(token_ids)} tokens with the prompt; this server scores up to {limit}",
                reason="limit",
            )
        request_id, resources = f"score-{random_uuid()}", self._engine.resources
        asked = WorkerRequest(response_start=start)
        text = TokenSequence(token_ids=token_ids, start=start, worker_request=asked)
        if objective.reads_values and self._per_token:
            values = await resources.values.every(text, request_id)
        elif objective.reads_values:
            values = [await resources.values.last(text, request_id)]
        if objective.token_stats:
            asked = WorkerRequest(token_stats_names=tuple(objective.token_stats))
            text = replace(text, worker_request=asked, cache_salt=salted(None, asked))
            stats = await resources.token_stats.every(text, f"{request_id}.text")
            sums = {name: token_sums([of_tokens]) for name, of_tokens in stats.items()}
        return values, sums


def _objective(request: ScoreRequest, server: AlignmentServer) -> Objective:
    sent = {"method": "score", "rewards": request.rewards}
    try:
        policy = parse_object(sent, {"score": Policy}, FIELD)
        assert policy is not None  # only the method `none` gives None
        return server.objective(policy)
    except PolicyError as error:
        raise error.under("") from error


async def _render_prompt(request: ScoreRequest, state: Any) -> dict[str, Any]:
    """The prompt as vLLM's engine input, rendered as for generation."""
    try:
        return await _render(request, state.online_renderer)
    except VLLMValidationError as error:
        raise PolicyError(error.parameter or "prompt", f"is invalid: {error.args[0]}") from error
    except ValidationError as error:
        raise _message_error(error, request.prompt) from error
    except ValueError as error:
        raise PolicyError("prompt", f"is invalid: {error}") from error


def _check_token_ids(prompt: Sequence[Any]) -> None:
    """Raises PolicyError for ids that are not 31-bit integers; vLLM checks the vocabulary."""
    for i, item in enumerate(prompt):
        if isinstance(item, int) and not 0 <= item <= _MAX_TOKEN_ID:
            raise PolicyError(
                f"prompt.{i}", f"is {safe_repr(item)}; token ids are 0 to {_MAX_TOKEN_ID}"
            )


def _message_error(error: ValidationError, messages: Sequence[Any]) -> PolicyError:
    """The error for the first invalid message; pydantic lists one for each class of message."""
    first = error.errors(include_url=False)[0]
    match first["loc"]:
        case ("messages", int(i), *_):
            return PolicyError(
                f"prompt.{i}",
                f"is {safe_repr(messages[i])}; it takes a chat message: an object with a role, and "
                "the content that the role takes",
            )
    return PolicyError("prompt", f"is not a chat: {requirement(first)}")


def _messages(request: ScoreRequest) -> list[dict[str, Any]] | None:
    if isinstance(request.prompt, str):
        return None
    return [item for item in request.prompt if isinstance(item, dict)] or None


async def _render(request: ScoreRequest, renderer: Any) -> dict[str, Any]:
    if (messages := _messages(request)) is not None:
        chat = ChatCompletionRequest(model=request.model, messages=messages)
        rendered = await renderer.render_chat(chat)
    else:
        completion = CompletionRequest(model=request.model, prompt=request.prompt)
        rendered = await renderer.render_completion(completion)
    if isinstance(rendered, ErrorResponse):
        raise PolicyError(rendered.error.param or "prompt", f"is invalid: {rendered.error.message}")
    inputs = rendered[1] if isinstance(rendered, tuple) else rendered
    result: dict[str, Any] = inputs[0]
    return result
