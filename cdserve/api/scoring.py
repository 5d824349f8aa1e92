"""``POST /v1/alignment/score``: this server's rewards of given responses."""

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.utils import random_uuid

from cdserve import scoring
from cdserve.api.server import AlignmentServer
from cdserve.decoders import Score
from cdserve.engine.aligned import AlignedEngine
from cdserve.errors import PolicyError, shown
from cdserve.policy import Policy
from cdserve.scoring import Objective, Response


class ScoreRequest(BaseModel):
    """Responses to one prompt, to be scored as finished."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    prompt: str | list[int] | list[dict[str, Any]] = Field(
        description="Text, token ids, or chat messages."
    )
    responses: list[str] = Field(min_length=1)
    rewards: dict[str, float] | None = Field(default=None, min_length=1)
    per_token: bool = Field(
        default=False,
        description="Also V after each token of the response and after EOS, for value heads.",
    )


class _Scoring(Policy):
    """The rewards of a score request, as a policy has them."""

    method: str = "score"


async def score(request: ScoreRequest, server: AlignmentServer, state: Any) -> dict[str, Any]:
    """The answer: a score, its rewards and per-token values for each response.

    Raises:
        PolicyError: a reward or the model is not known, or too much is asked for.
    """
    if request.model is not None and request.model != server.settings.model_name:
        raise PolicyError(
            f"model is {shown(request.model)}; this server scores with "
            f"{shown(server.settings.model_name)}",
            "model",
        )
    if not request.prompt:
        raise PolicyError("prompt is empty; it takes text, token ids or chat messages", "prompt")
    limit = server.settings.limits.max_n
    if len(request.responses) > limit:
        raise PolicyError(
            f"responses has {len(request.responses)} items; this server accepts 1 to {limit}",
            "responses",
        )
    objective = _objective(request, server)
    prompt = await _rendered(request, state)
    scorer = _Scorer(state.engine_client, objective, prompt, request)
    try:
        return {"scores": await scorer.score(request.responses)}
    except VLLMClientError as error:  # the engine refuses the tokens of the prompt
        raise PolicyError(str(error.args[0]), "prompt") from error


class _Scorer:
    def __init__(
        self,
        engine: AlignedEngine,
        objective: Objective,
        prompt: dict[str, Any],
        request: ScoreRequest,
    ) -> None:
        self._engine = engine
        self._objective = objective
        self._tokenizer = engine.renderer.get_tokenizer()
        self._prompt: list[int] = prompt["prompt_token_ids"]
        self._prompt_text = prompt.get("prompt") or self._tokenizer.decode(self._prompt)
        self._messages = _messages(request)
        self._per_token = request.per_token

    async def score(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """All responses at once, as the candidates of one decision are scored."""
        token_ids = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        values: list[list[Any]] = [[] for _ in texts]
        if self._objective.reads_values:
            values = await asyncio.gather(*map(self._values, token_ids))
        scores = await self._objective.score(
            [
                Response(
                    prompt=self._prompt_text,
                    text=text,
                    tokens=len(ids) + (self._tokenizer.eos_token_id is not None),
                    finished=True,
                    values=found[-1] if found else {},
                    messages=self._messages,
                )
                for text, ids, found in zip(texts, token_ids, values, strict=True)
            ]
        )
        return [self._answer(*one) for one in zip(scores, values, strict=True)]

    def _answer(self, score: Score, values: Sequence[Any]) -> dict[str, Any]:
        made: dict[str, Any] = {"score": score.total, "rewards": dict(score.rewards)}
        if score.failed:
            made["failed"] = list(score.failed)
        if self._per_token:
            heads = [n for n, r in self._objective.rewards.items() if r.kind == "value_head"]
            made["per_token"] = {name: [value[name] for value in values] for name in heads}
        return made

    async def _values(self, token_ids: Sequence[int]) -> list[Any]:
        """V after each token and after EOS if asked for; else only the last."""
        eos = self._tokenizer.eos_token_id
        whole = [*self._prompt, *token_ids, *([] if eos is None else [eos])]
        limit = self._engine.model_config.max_model_len - 1
        if len(whole) > limit:
            raise PolicyError(
                f"prompt and response have {len(whole)} tokens; this server scores up to {limit}",
                "responses",
            )
        request_id = f"score-{random_uuid()}"
        if self._per_token:
            return await self._engine.values.every(whole, len(self._prompt), request_id)
        return [await self._engine.values.last(whole, request_id)]


def _objective(request: ScoreRequest, server: AlignmentServer) -> Objective:
    try:
        return scoring.objective(
            _Scoring(rewards=request.rewards), server.rewards, server.settings.default_reward
        )
    except PolicyError as error:
        raise PolicyError(
            str(error).removeprefix("alignment."), error.param.removeprefix("alignment.")
        ) from error


async def _rendered(request: ScoreRequest, state: Any) -> dict[str, Any]:
    """The prompt as the generating routes would see it."""
    try:
        return await _render(request, state.online_renderer)
    except VLLMValidationError as error:
        raise PolicyError(str(error.args[0]), error.parameter or "prompt") from error
    except ValueError as error:
        raise PolicyError(str(error), "prompt") from error


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
        raise PolicyError(rendered.error.message, rendered.error.param or "prompt")
    inputs = rendered[1] if isinstance(rendered, tuple) else rendered
    result: dict[str, Any] = inputs[0]
    return result
