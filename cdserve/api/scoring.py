"""``POST /v1/alignment/score``: scores given responses with this server's rewards."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
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
from cdserve.errors import ModelError, PolicyError, safe_repr
from cdserve.policy import FIELD, Policy, parse_object
from cdserve.scoring import Objective, Response
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


async def score(
    request: ScoreRequest, server: AlignmentServer, state: Any, client_id: str | None
) -> dict[str, Any]:
    """The answer: a score, its rewards and per-token values for each response.

    Args:
        client_id: the client's ``X-Request-Id``, for the log.

    Raises:
        ModelError: the model is not there.
        PolicyError: a reward is not known, the model is an adapter, or too much is asked for.
    """
    await _check_model(request, server, state)
    if not request.prompt:
        raise PolicyError("prompt", "is empty; it takes text, token ids or chat messages")
    _check_token_ids(request.prompt)
    limit = server.settings.limits.max_n
    if len(request.responses) > limit:
        raise PolicyError(
            "responses", f"has {len(request.responses)} items; this server accepts 1 to {limit}"
        )
    objective = _objective(request, server)
    prompt = await _rendered(request, state)
    request_id = f"score-{client_id or random_uuid()}"
    scorer = _Scorer(state.engine_client, objective, prompt, request, request_id)
    try:
        return {"scores": await scorer.score(request.responses)}
    except VLLMClientError as error:  # the engine rejects the tokens of the prompt
        raise PolicyError("prompt", f"is invalid: {error.args[0]}") from error


async def _check_model(request: ScoreRequest, server: AlignmentServer, state: Any) -> None:
    """Checks that the base model is asked for: by a name of its own or a preset's."""
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
        """All responses at once, as the candidates of one decision are scored."""
        prefixes = await asyncio.gather(*map(self._prefixes, texts))
        finished = [of_one[-1] for of_one in prefixes]
        scores = await self._objective.score(finished, self._request_id)
        return [await self._answer(*one) for one in zip(scores, prefixes, strict=True)]

    async def _answer(self, score: Score, prefixes: Sequence[Response]) -> dict[str, Any]:
        made: dict[str, Any] = {"score": score.total, "rewards": dict(score.rewards)}
        if score.failed:
            made["failed"] = list(score.failed)
        if self._per_token:
            made["per_token"] = await self._objective.per_token(prefixes, self._request_id)
        return made

    async def _prefixes(self, text: str) -> list[Response]:
        """The response and, where wanted, before it every prefix of it, a token longer each."""
        token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        eos = self._tokenizer.eos_token_id
        response = [*token_ids, *([] if eos is None else [eos])]
        values, logliks = await self._read([*self._prompt, *response])
        count = len(response) if self._per_token else 1
        return [
            Response(
                prompt=self._prompt_text,
                text=text if left == 0 else "",
                tokens=len(response) - left,
                finished=left == 0,
                values=values[-1 - left] if values else {},
                loglik=logliks[-1 - left] if logliks else {},
                messages=self._messages,
            )
            for left in reversed(range(count))
        ]

    async def _read(self, whole: Sequence[int]) -> tuple[list[Any], list[Any]]:
        """V by reward and log p by model, of each prefix of a text.

        V of the whole text only, unless per-token rewards are asked for.
        """
        objective, start = self._objective, len(self._prompt)
        values: list[Any] = []
        logliks: list[Any] = []
        limit = self._engine.model_config.max_model_len - 1
        if (objective.reads_values or objective.models) and len(whole) > limit:
            raise PolicyError(
                "responses",
                f"has a text of {len(whole)} tokens, prompt included; this server scores up to "
                f"{limit}",
            )
        request_id, resources = f"score-{random_uuid()}", self._engine.resources
        text = TokenSequence(token_ids=whole, start=start)
        if objective.reads_values and self._per_token:
            values = await resources.values.every(text, request_id)
        elif objective.reads_values:
            values = [await resources.values.last(text, request_id)]
        if objective.models:
            base = WorkerRequest(loglik_models=tuple(objective.models))
            text = replace(text, base=base, cache_salt=salted(None, base))
            logliks = await resources.loglik.every(text, f"{request_id}.text")
        return values, logliks


def _objective(request: ScoreRequest, server: AlignmentServer) -> Objective:
    sent = {"method": "score", "rewards": request.rewards}
    try:
        policy = parse_object(sent, {"score": Policy}, FIELD)
        assert policy is not None  # as only the method `none` is
        return server.objective(policy)
    except PolicyError as error:
        raise error.under("") from error


async def _rendered(request: ScoreRequest, state: Any) -> dict[str, Any]:
    """The prompt as the generating routes would see it."""
    try:
        return await _render(request, state.online_renderer)
    except VLLMValidationError as error:
        raise PolicyError(error.parameter or "prompt", f"is invalid: {error.args[0]}") from error
    except ValidationError as error:
        raise _not_a_message(error, request.prompt) from error
    except ValueError as error:
        raise PolicyError("prompt", f"is invalid: {error}") from error


def _check_token_ids(prompt: Sequence[Any]) -> None:
    """Raises PolicyError for what no tokenizer has; what its vocabulary lacks vLLM refuses."""
    for i, one in enumerate(prompt):
        if isinstance(one, int) and not 0 <= one <= _MAX_TOKEN_ID:
            raise PolicyError(
                f"prompt.{i}", f"is {safe_repr(one)}; token ids are 0 to {_MAX_TOKEN_ID} at most"
            )


def _not_a_message(error: ValidationError, messages: Sequence[Any]) -> PolicyError:
    """One error for the first bad message; Pydantic lists one for each class of message."""
    first = error.errors(include_url=False)[0]
    match first["loc"]:
        case ("messages", int(i), *_):
            return PolicyError(
                f"prompt.{i}",
                f"is {safe_repr(messages[i])}; it takes a chat message: an object with a role, and "
                "the content that the role takes",
            )
    return PolicyError("prompt", f"is not a chat: {first['msg']}")


def _messages(request: ScoreRequest) -> list[dict[str, Any]] | None:
    if isinstance(request.prompt, str):
        return None
    return [one for one in request.prompt if isinstance(one, dict)] or None


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
