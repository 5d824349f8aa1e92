"""What the routes answer, as ``/openapi.json`` has it."""

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


class AlignedCompletion(CompletionResponse):  # type: ignore[misc]
    """OpenAI's answer, and the report."""

    alignment: Report | None = Field(default=None, description="Where a policy was followed.")


class AlignedChatCompletion(ChatCompletionResponse):  # type: ignore[misc]
    """OpenAI's answer, and the report."""

    alignment: Report | None = Field(default=None, description="Where a policy was followed.")


class AlignedResponse(ResponsesResponse):  # type: ignore[misc]
    """OpenAI's answer, and the report."""

    alignment: Report | None = Field(default=None, description="Where a policy was followed.")


class AlignedMessage(AnthropicMessagesResponse):  # type: ignore[misc]
    """Anthropic's answer, and the report."""

    alignment: Report | None = Field(default=None, description="Where a policy was followed.")


class ScoredResponse(_Part):
    """One response of a score request."""

    score: float = Field(description="The weighted sum of its rewards.")
    rewards: dict[str, float] = Field(description="Each reward in its own units.")
    failed: list[str] | None = Field(default=None, description="Rewards that failed.")
    per_token: dict[str, list[float]] | None = Field(
        default=None, description="Rewards after each token, by name, with `per_token`."
    )


class ScoreAnswer(_Part):
    """The answer of ``POST /v1/alignment/score``."""

    scores: list[ScoredResponse] = Field(description="In the order of the responses.")


class Description(_Part):
    """The answer of ``GET /v1/alignment``."""

    methods: dict[str, dict[str, Any]] = Field(description="The JSON schema of each method.")
    rewards: dict[str, dict[str, Any]] = Field(
        description="Kind and settings of each; whether it scores `prefixes` and `next_tokens`; "
        "whether it is the `default`."
    )
    members: dict[str, dict[str, Any]] = Field(description="Models that can be mixed in.")
    presets: dict[str, dict[str, Any]] = Field(description="The policy of each.")
    limits: dict[str, Any] = Field(description="The operator's, or the API key's.")


_ERRORS: dict[int | str, str] = {
    400: "What is asked for cannot be; `param` names the field.",
    401: "No API key, or one that is not known.",
    404: "No such model or preset.",
    413: "The body is too large.",
    429: "More candidates than the key may have at once; `retry-after` has the seconds.",
    500: "It failed; `x-should-retry: false` where candidates had been drawn.",
    501: "vLLM cannot do this with this model.",
    503: "No room, or the server is stopping; `retry-after` has the seconds.",
    "default": "Any other error.",
}


def _responses(
    answer: type[BaseModel],
    *errors: int,
    streams: bool = False,
    error: type[BaseModel] = ErrorResponse,
) -> dict[int | str, dict[str, Any]]:
    """A route's: the answer, and the errors it gives beside those that any route may."""
    good = {"model": answer, **({"content": {"text/event-stream": {}}} if streams else {})}
    statuses: tuple[int | str, ...] = (*errors, 401, "default")
    return {200: good} | {
        status: {"model": error, "description": _ERRORS[status]} for status in statuses
    }


_DRAWING = (400, 404, 413, 429, 500, 501, 503)
COMPLETION = _responses(AlignedCompletion, *_DRAWING, streams=True)
CHAT_COMPLETION = _responses(AlignedChatCompletion, *_DRAWING, streams=True)
BATCH = _responses(AlignedChatCompletion, *_DRAWING)
RESPONSE = _responses(AlignedResponse, *_DRAWING, streams=True)
MESSAGE = _responses(AlignedMessage, *_DRAWING, streams=True, error=AnthropicErrorResponse)
COUNT = _responses(AnthropicCountTokensResponse, 400, 404, 413, 500, error=AnthropicErrorResponse)
SCORE = _responses(ScoreAnswer, 400, 413, 500)
DESCRIPTION = _responses(Description)
MODELS = _responses(ModelList)
