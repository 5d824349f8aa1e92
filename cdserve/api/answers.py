"""Response schemas of the routes, for ``/openapi.json``."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from vllm.entrypoints.anthropic.protocol import (
    AnthropicCountTokensResponse,
    AnthropicErrorResponse,
    AnthropicMessagesResponse,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionResponse
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse, ModelList

from cdserve.report import Report


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


_REPORT = "Report of the decoding; present when the request used an alignment policy."


class AlignedCompletion(CompletionResponse):  # type: ignore[misc]
    """OpenAI completion with the report of the decoding."""

    alignment: Report | None = Field(default=None, description=_REPORT)


class AlignedChatCompletion(ChatCompletionResponse):  # type: ignore[misc]
    """OpenAI chat completion with the report of the decoding."""

    alignment: Report | None = Field(default=None, description=_REPORT)


class AlignedResponse(ResponsesResponse):  # type: ignore[misc]
    """Response of OpenAI's Responses API with the report of the decoding."""

    alignment: Report | None = Field(default=None, description=_REPORT)


class AlignedMessage(AnthropicMessagesResponse):  # type: ignore[misc]
    """Anthropic message with the report of the decoding."""

    alignment: Report | None = Field(default=None, description=_REPORT)


class ScoredResponse(_Part):
    """Scores of one response of a score request."""

    score: float = Field(description="Weighted sum of the response's rewards.")
    rewards: dict[str, float] = Field(
        description="Each reward of the response, in units of the reward."
    )
    failed: list[str] | None = Field(
        default=None, description="Names of the rewards that failed; present if there are any."
    )
    per_token: dict[str, list[float]] | None = Field(
        default=None,
        description="Reward after each token of the response, by reward; present with `per_token`.",
    )


class ScoreAnswer(_Part):
    """Response body of ``POST /v1/alignment/score``."""

    scores: list[ScoredResponse] = Field(
        description="Scores of the responses, in the order of the request."
    )


class Description(_Part):
    """Response body of ``GET /v1/alignment``."""

    methods: dict[str, dict[str, Any]] = Field(
        description="JSON schema of each method, by name; `whole_responses` says whether its only "
        "decision is between whole responses."
    )
    rewards: dict[str, dict[str, Any]] = Field(
        description="Kind and settings of each reward, by name, and whether the reward scores "
        "`prefixes`, scores `next_tokens`, and is the `default`."
    )
    advice: str | None = Field(
        description="Possibilities of a server without rewards other than the model's own "
        "confidence, in words; null for other servers."
    )
    members: dict[str, dict[str, Any]] = Field(
        description="Auxiliary models that can be mixed with the base model, by name."
    )
    extractors: list[str] = Field(
        description="Names that `extract` of a vote may be, in addition to a regular expression."
    )
    pairwise_judges: dict[str, dict[str, Any]] = Field(
        description="Settings of each judge of the selection `pairwise`, by name."
    )
    presets: dict[str, dict[str, Any]] = Field(description="Policy of each preset, by name.")
    limits: dict[str, Any] = Field(description="Limits on a request with the caller's API key.")


_ERRORS: dict[int | str, str] = {
    400: "Invalid request; `param` names the field.",
    401: "Missing or unknown API key.",
    404: "Unknown model or preset.",
    413: "Request body too large.",
    422: "No response reached the policy's `threshold`, and its `on_reject` is `error`; or the "
    "regular expression of a vote takes too long on a response.",
    429: "Candidate limit of the API key reached; `retry-after` gives the delay in seconds.",
    500: "Internal error; `x-should-retry: false` if candidates had been drawn.",
    501: "Request not supported by vLLM for this model.",
    503: "Server full or shutting down; `retry-after` gives the delay in seconds.",
    "default": "Any other error.",
}


def _responses(
    answer: type[BaseModel],
    *errors: int,
    streams: bool = False,
    error: type[BaseModel] = ErrorResponse,
) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of a route: the answer, ``errors``, 401 and the default error."""
    success = {"model": answer, **({"content": {"text/event-stream": {}}} if streams else {})}
    statuses: tuple[int | str, ...] = (*errors, 401, "default")
    return {200: success} | {
        status: {"model": error, "description": _ERRORS[status]} for status in statuses
    }


_GENERATION = (400, 404, 413, 422, 429, 500, 501, 503)
COMPLETION = _responses(AlignedCompletion, *_GENERATION, streams=True)
CHAT_COMPLETION = _responses(AlignedChatCompletion, *_GENERATION, streams=True)
BATCH = _responses(AlignedChatCompletion, *_GENERATION)
RESPONSE = _responses(AlignedResponse, *_GENERATION, streams=True)
MESSAGE = _responses(AlignedMessage, *_GENERATION, streams=True, error=AnthropicErrorResponse)
COUNT = _responses(AnthropicCountTokensResponse, 400, 404, 413, 500, error=AnthropicErrorResponse)
SCORE = _responses(ScoreAnswer, 400, 413, 500)
DESCRIPTION = _responses(Description)
MODELS = _responses(ModelList)
