"""vLLM's request classes with the ``alignment`` field."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, PrivateAttr
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
)
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.sampling_params import SamplingParams

from cdserve.api.server import AlignmentServer
from cdserve.engine.context import CONTEXT_KEY, AlignmentContext
from cdserve.errors import PolicyError, safe_repr
from cdserve.policy import FIELD
from cdserve.worker.request import REQUEST_KEY

_DESCRIPTION = (
    "Alignment policy: the name of a preset, or an object with a method. GET /v1/alignment lists "
    "the presets and the JSON schemas of the methods."
)


class Aligned(BaseModel):
    """What all request classes share. Mixed in before vLLM's class."""

    if TYPE_CHECKING:
        model: str | None

    alignment: Any = Field(default=None, description=_DESCRIPTION)
    _context: AlignmentContext | None = PrivateAttr(None)
    _server: AlignmentServer = PrivateAttr()

    def resolve(self, server: AlignmentServer) -> AlignmentContext | None:
        """Reads the policy off ``alignment`` or the model id, and checks it against the request.

        A preset's model id becomes the base model's.

        Raises:
            PolicyError: naming the field, the value and what is accepted.
        """
        preset = server.preset_of(self.model)
        if preset is not None:
            if self.alignment is not None:
                raise PolicyError(
                    FIELD,
                    f"cannot be combined with model {safe_repr(self.model)}, a preset; use model "
                    f"{safe_repr(server.settings.model_name)}",
                )
            self.alignment, self.model = preset, server.settings.model_name
        self._server = server
        self._context = server.resolve(self.alignment)
        if self._context is not None:
            _check_combination(self, self._context)
        return self._context

    @property
    def server(self) -> AlignmentServer:
        """What the server is to whoever sends it, once it is resolved."""
        return self._server

    @property
    def counts(self) -> Mapping[str, int]:
        """Fields that ask for several answers, and for how many each."""
        return {}

    @property
    def choices(self) -> int:
        """Answers in all."""
        return math.prod(self.counts.values())

    @property
    def length_field(self) -> str:
        """The field that bounds the response's tokens."""
        newer = getattr(self, "max_completion_tokens", None)
        return "max_tokens" if newer is None else "max_completion_tokens"

    @property
    def output_only(self) -> Mapping[str, Any]:
        """Fields in use that look at the tokens of the output only."""
        found = {name: getattr(self, name, None) for name in _OUTPUT_ONLY}
        return {n: v for n, v in found.items() if v is not None and v != _OUTPUT_ONLY[n]}

    @property
    def grammar(self) -> str | None:
        """The field that constrains the text by a grammar, if one does."""
        if self.extract_structured_outputs() is None:  # type: ignore[attr-defined]
            return None
        form = getattr(self, "response_format", None)
        return "structured_outputs" if form is None else "response_format"

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> SamplingParams:
        """As vLLM's; the policy rides in ``extra_args``."""
        params = super().to_sampling_params(*args, **kwargs)  # type: ignore[misc]
        if self._context is not None:
            limit = self._server.settings.limits.max_candidate_tokens
            _check_params(params, self._context, self.choices, self.length_field, limit)
            if params.structured_outputs is not None:  # vLLM's, of a tool call
                _check_grammar(self._context, "tools")
            params.extra_args = {**(params.extra_args or {}), CONTEXT_KEY: self._context}
        return params


class AlignedCompletionRequest(Aligned, CompletionRequest):  # type: ignore[misc]
    """A completions request with a policy."""

    @property
    def counts(self) -> Mapping[str, int]:
        """A list of texts or of token lists holds several prompts."""
        prompt = self.prompt
        several = isinstance(prompt, list) and not all(isinstance(item, int) for item in prompt)
        return {"n": self.n or 1, "prompt": len(prompt) if several else 1}


class AlignedChatCompletionRequest(Aligned, ChatCompletionRequest):  # type: ignore[misc]
    """A chat completions request with a policy."""

    _origin: Aligned | None = PrivateAttr(None)
    """What vLLM made it of, if it is of another API."""

    @classmethod
    def of(cls, made: ChatCompletionRequest, request: Aligned) -> "AlignedChatCompletionRequest":
        """The chat request that vLLM made of another API's, under that one's policy."""
        fields = dict(made)  # validated already
        chat: AlignedChatCompletionRequest = cls.model_construct(made.model_fields_set, **fields)
        chat._context, chat._server, chat._origin = request._context, request._server, request
        return chat

    @property
    def counts(self) -> Mapping[str, int]:
        return {"n": self.n or 1} if self._origin is None else self._origin.counts

    @property
    def length_field(self) -> str:
        return super().length_field if self._origin is None else self._origin.length_field

    def resolve(self, server: AlignmentServer) -> AlignmentContext | None:
        """As for completions; rewards may read the messages."""
        context = super().resolve(server)
        if context is not None:
            context.conversations = [self.messages]
        return context


class AlignedBatchRequest(Aligned, BatchChatCompletionRequest):  # type: ignore[misc]
    """A chat completions request of several conversations, each answered under the policy."""

    @property
    def counts(self) -> Mapping[str, int]:
        return {"messages": len(self.messages)}

    @property
    def grammar(self) -> str | None:
        made: AlignedChatCompletionRequest = self.to_chat_completion_request(self.messages[0])
        return made.grammar

    def resolve(self, server: AlignmentServer) -> AlignmentContext | None:
        """As for completions; rewards may read the messages."""
        context = super().resolve(server)
        if context is not None:
            context.conversations = self.messages
        return context

    def to_chat_completion_request(self, messages: Any) -> "AlignedChatCompletionRequest":
        """As vLLM's, under the policy."""
        return AlignedChatCompletionRequest.of(super().to_chat_completion_request(messages), self)


class AlignedResponsesRequest(Aligned, ResponsesRequest):  # type: ignore[misc]
    """A request of OpenAI's Responses API with a policy."""

    @property
    def length_field(self) -> str:
        return "max_output_tokens"

    @property
    def grammar(self) -> str | None:
        found = super().grammar
        return found if found is None or self.structured_outputs is not None else "text.format"

    def resolve(self, server: AlignmentServer) -> AlignmentContext | None:
        """As for completions."""
        context = super().resolve(server)
        if context is not None and self.background:
            raise PolicyError("background", f"is true; it cannot be combined with {FIELD}")
        return context


class AlignedMessagesRequest(Aligned, AnthropicMessagesRequest):  # type: ignore[misc]
    """A request of Anthropic's Messages API with a policy; vLLM makes a chat request of it."""

    @property
    def output_only(self) -> Mapping[str, Any]:
        budget = getattr(self.thinking, "budget_tokens", None)
        return {} if budget is None else {"thinking.budget_tokens": budget}

    @property
    def grammar(self) -> str | None:
        config = self.output_config
        return None if config is None or config.format is None else "output_config.format"

    def chat(self, made: ChatCompletionRequest) -> AlignedChatCompletionRequest:
        """The chat request that vLLM made of it, under the policy."""
        chat = AlignedChatCompletionRequest.of(made, self)
        if self._context is not None:
            self._context.conversations = [chat.messages]
        return chat


def _check_combination(request: Aligned, context: AlignmentContext) -> None:
    """Raises PolicyError for fields that no method, or not this one, can honour."""
    method = context.policy.method
    if getattr(request, "use_beam_search", False):
        raise PolicyError(
            "use_beam_search",
            f"cannot be combined with method {method!r}, which samples its candidates",
        )
    if not context.policy.scores_prefixes:
        return
    # Across blocks the accepted tokens are the candidates' prompt, which these do not look at.
    for field, value in request.output_only.items():
        raise PolicyError(
            field,
            f"is {safe_repr(value)}; it counts output tokens only, which method {method!r} cannot "
            "honour across blocks (repetition_penalty, which counts the whole text, is supported)",
        )
    if request.grammar is not None:
        _check_grammar(context, request.grammar)


def _check_grammar(context: AlignmentContext, field: str) -> None:
    """Raises PolicyError where blocks would lose the state of the grammar that ``field`` makes."""
    if context.policy.scores_prefixes:
        raise PolicyError(
            field,
            "requires grammar-constrained output, which cannot be combined with method "
            f"{context.policy.method!r}: the state of the grammar is lost between blocks; use "
            "'best_of_n'",
        )


_OUTPUT_ONLY: dict[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "bad_words": [],
    "repetition_detection": None,
    "thinking_token_budget": None,
}


def _check_params(
    params: SamplingParams, context: AlignmentContext, answers: int, length_field: str, limit: int
) -> None:
    for key in {REQUEST_KEY, CONTEXT_KEY} & (params.extra_args or {}).keys():
        field = f"vllm_xargs.{key}"
        raise PolicyError(field, f"is reserved; use the field {FIELD!r}")
    width = context.policy.width
    if width > 1 and params.temperature == 0:
        raise PolicyError(
            "temperature",
            f"is 0; all {width} candidates would be the same, so method "
            f"{context.policy.method!r} needs a temperature above 0",
        )
    tokens = width * params.max_tokens * answers
    if tokens > limit:
        times = f" × {answers} answers" if answers > 1 else ""
        raise PolicyError(
            length_field,
            f"is {params.max_tokens}; {width} candidates{times} would be {tokens} tokens, and this "
            f"server accepts up to {limit}",
        )
