"""vLLM's request classes with the ``alignment`` field."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, PrivateAttr, model_validator
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
from cdserve.errors import PolicyError, safe_key, safe_repr
from cdserve.policy import FIELD, SearchPolicy
from cdserve.validation import did_you_mean
from cdserve.worker.request import REQUEST_KEY

_DESCRIPTION = (
    "Alignment policy: the name of a preset, or an object with a method. GET /v1/alignment lists "
    "the presets and the JSON schemas of the methods."
)


_GREEDY_SEED = 0
"""Seed of requests with temperature 0 and no seed, so that equal requests have equal answers."""


class AlignedRequestMixin(BaseModel):
    """Base of all request classes with a policy, to be placed before vLLM's class."""

    if TYPE_CHECKING:
        model: str | None
        temperature: float | None

    alignment: Any = Field(default=None, description=_DESCRIPTION)
    _context: AlignmentContext | None = PrivateAttr(None)
    _server: AlignmentServer = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _check_spelling(cls, sent: Any) -> Any:
        """Raises PolicyError, which FastAPI passes on, for an unknown field like ``alignment``.

        vLLM ignores unknown fields, so that the request would be decoded without its policy.
        """
        for name in sent if isinstance(sent, dict) else ():
            # Other words, such as "assignment", may be fields of the client's own.
            alike = name[:2].lower() == FIELD[:2] and len(name) < 2 * len(FIELD)
            if name in cls.model_fields or not alike:
                continue
            if suggestion := did_you_mean(name, [FIELD]):
                raise PolicyError(safe_key(name), f"is not known{suggestion}")
        return sent

    def resolve(self, server: AlignmentServer) -> AlignmentContext | None:
        """Resolves the policy of ``alignment`` or of the model id; None for plain decoding.

        A preset's model id is replaced by the base model's.

        Args:
            server: the caller's view of the server.

        Raises:
            PolicyError: the policy is invalid, or cannot be combined with another field; the
                message names the field, the value and what is accepted.
        """
        preset = server.preset_of(self.model)
        if preset is not None:
            if self.alignment is not None:
                raise PolicyError(
                    FIELD,
                    f"cannot be combined with model {safe_repr(self.model)}, a preset; use model "
                    f"{safe_repr(server.settings.model_name)}",
                    reason="combination",
                )
            self.alignment, self.model = preset, server.settings.model_name
        self._server = server
        self._context = server.resolve(self.alignment)
        if self._context is not None:
            _check_combination(self, self._context)
            self._context.tools = bool(getattr(self, "tools", None))
        return self._context

    @property
    def server(self) -> AlignmentServer:
        """The caller's view of the server; set by ``resolve``."""
        return self._server

    @property
    def choice_counts(self) -> Mapping[str, int]:
        """Number of choices that each field asks for; the total is their product."""
        return {}

    @property
    def choice_count(self) -> int:
        """Total number of choices in the response."""
        return math.prod(self.choice_counts.values())

    @property
    def length_field(self) -> str:
        """Name of the field that limits the length of the response."""
        newer = getattr(self, "max_completion_tokens", None)
        return "max_tokens" if newer is None else "max_completion_tokens"

    @property
    def forces_tool_call(self) -> bool:
        """Whether ``tool_choice`` forces a tool call, in the format of the request's API."""
        choice = getattr(self, "tool_choice", None)
        if not isinstance(choice, str):
            # A named tool has a type; the Responses API's "allowed_tools" has a mode, too.
            choice = getattr(choice, "mode", getattr(choice, "type", None))
        return choice not in (None, "none", "auto")

    @property
    def output_only(self) -> Mapping[str, Any]:
        """Fields in use that consider only the tokens of the output, with their values."""
        values = {name: getattr(self, name, None) for name in _OUTPUT_ONLY}
        return {n: v for n, v in values.items() if v is not None and v != _OUTPUT_ONLY[n]}

    def to_sampling_params(
        self, max_tokens: int, default_sampling_params: Mapping[str, Any] | None = None
    ) -> SamplingParams:
        """vLLM's sampling parameters, with the policy in ``extra_args``.

        At temperature 0 the policy's ``sampling``, if there is one, replaces the request's fields.

        Raises:
            PolicyError: the policy or a limit excludes the parameters.
        """
        if self._context is not None:
            self._replace_greedy(self._context, default_sampling_params or {})
        params = super().to_sampling_params(  # type: ignore[misc]
            max_tokens, default_sampling_params
        )
        if self._context is not None:
            limit = self._server.settings.limits.max_candidate_tokens
            _check_params(params, self._context, self.choice_count, self.length_field, limit)
            params.extra_args = {**(params.extra_args or {}), CONTEXT_KEY: self._context}
        return params

    def _replace_greedy(self, context: AlignmentContext, defaults: Mapping[str, Any]) -> None:
        """Replaces greedy sampling of several candidates by the policy's ``sampling``.

        Done before vLLM checks the fields: it rejects greedy sampling with ``n`` above 1.
        """
        policy, temperature = context.policy, self.temperature
        if temperature is None:
            temperature = defaults.get("temperature")
        if temperature != 0 or policy.width == 1 or not isinstance(policy, SearchPolicy):
            return
        if (sampling := policy.sampling) is None:
            return
        seed = getattr(self, "seed", None)
        context.sampling = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "seed": _GREEDY_SEED if seed is None else seed,
        }
        # vLLM takes 0 for all tokens; None would stand for the model's default.
        for name, value in {**context.sampling, "top_k": sampling.top_k or 0}.items():
            setattr(self, name, value)


class AlignedCompletionRequest(AlignedRequestMixin, CompletionRequest):  # type: ignore[misc]
    """Request of the Completions API with a policy."""

    @property
    def choice_counts(self) -> Mapping[str, int]:
        """``n`` and the number of prompts: a list of texts or of token lists holds several."""
        prompt = self.prompt
        several = isinstance(prompt, list) and not all(isinstance(item, int) for item in prompt)
        return {"n": self.n or 1, "prompt": len(prompt) if several else 1}


class AlignedChatCompletionRequest(AlignedRequestMixin, ChatCompletionRequest):  # type: ignore[misc]
    """Request of the Chat Completions API with a policy."""

    _origin: AlignedRequestMixin | None = PrivateAttr(None)
    """Request of another API that vLLM converted to this one; None if there is none."""

    @classmethod
    def with_policy_of(
        cls, chat: ChatCompletionRequest, origin: AlignedRequestMixin
    ) -> "AlignedChatCompletionRequest":
        """Adds the policy of ``origin`` to the chat request that vLLM converted it to."""
        fields = dict(chat)  # validated already
        aligned: AlignedChatCompletionRequest = cls.model_construct(chat.model_fields_set, **fields)
        aligned._context, aligned._server, aligned._origin = origin._context, origin._server, origin
        return aligned

    @property
    def choice_counts(self) -> Mapping[str, int]:
        return {"n": self.n or 1} if self._origin is None else self._origin.choice_counts

    @property
    def length_field(self) -> str:
        return super().length_field if self._origin is None else self._origin.length_field

    def resolve(self, server: AlignmentServer) -> AlignmentContext | None:
        """Resolves the policy and adds the messages, which rewards may read, to its context."""
        context = super().resolve(server)
        if context is not None:
            context.conversations = [self.messages]
        return context


class AlignedBatchRequest(AlignedRequestMixin, BatchChatCompletionRequest):  # type: ignore[misc]
    """Chat completions request with several conversations under one policy."""

    @property
    def choice_counts(self) -> Mapping[str, int]:
        return {"messages": len(self.messages)}

    def resolve(self, server: AlignmentServer) -> AlignmentContext | None:
        """Resolves the policy and adds the messages, which rewards may read, to its context."""
        context = super().resolve(server)
        if context is not None:
            context.conversations = self.messages
        return context

    def to_chat_completion_request(self, messages: Any) -> "AlignedChatCompletionRequest":
        """The chat request of one conversation, with the policy."""
        chat = super().to_chat_completion_request(messages)
        return AlignedChatCompletionRequest.with_policy_of(chat, self)


class AlignedResponsesRequest(AlignedRequestMixin, ResponsesRequest):  # type: ignore[misc]
    """Request of OpenAI's Responses API with a policy."""

    @property
    def length_field(self) -> str:
        return "max_output_tokens"

    def resolve(self, server: AlignmentServer) -> AlignmentContext | None:
        """Resolves the policy; rejects ``background``."""
        context = super().resolve(server)
        if context is not None and self.background:
            detail = f"is true; it cannot be combined with {FIELD}"
            raise PolicyError("background", detail, reason="combination")
        return context


class AlignedMessagesRequest(AlignedRequestMixin, AnthropicMessagesRequest):  # type: ignore[misc]
    """Request of Anthropic's Messages API with a policy; vLLM converts it to a chat request."""

    @property
    def output_only(self) -> Mapping[str, Any]:
        budget = getattr(self.thinking, "budget_tokens", None)
        return {} if budget is None else {"thinking.budget_tokens": budget}

    def with_policy(self, chat: ChatCompletionRequest) -> AlignedChatCompletionRequest:
        """Adds the policy to the chat request that vLLM converted this request to."""
        aligned = AlignedChatCompletionRequest.with_policy_of(chat, self)
        if self._context is not None:
            self._context.conversations = [aligned.messages]
        return aligned


def _check_combination(request: AlignedRequestMixin, context: AlignmentContext) -> None:
    """Raises PolicyError for a field that the method cannot honour."""
    method = context.policy.method
    if getattr(request, "use_beam_search", False):
        raise PolicyError(
            "use_beam_search",
            f"cannot be combined with method {method!r}, which samples its candidates",
            reason="combination",
        )
    guard = context.policy.guard
    if guard is not None and guard.on_reject == "refuse" and request.forces_tool_call:
        raise PolicyError(
            f"{FIELD}.threshold.on_reject",
            "is 'refuse', whose text cannot replace the tool call that tool_choice forces; use "
            "'best' or 'error'",
            reason="combination",
        )
    if not context.policy.compares_prefixes:
        return
    # Accepted blocks become part of the prompt, which these fields do not consider.
    for field, value in request.output_only.items():
        raise PolicyError(
            field,
            f"is {safe_repr(value)}; it counts output tokens only, which method {method!r} cannot "
            "honour across blocks (repetition_penalty, which counts the whole text, is supported)",
            reason="combination",
        )


_OUTPUT_ONLY: dict[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "bad_words": [],
    "repetition_detection": None,
    "thinking_token_budget": None,
}
"""Fields that consider only the tokens of the output, with their neutral values."""


def _check_params(
    params: SamplingParams, context: AlignmentContext, choices: int, length_field: str, limit: int
) -> None:
    """Raises PolicyError for sampling parameters that the policy or the token limit excludes."""
    for key in {REQUEST_KEY, CONTEXT_KEY} & (params.extra_args or {}).keys():
        field = f"vllm_xargs.{key}"
        raise PolicyError(field, f"is reserved; use the field {FIELD!r}")
    width = context.policy.width
    if width > 1 and params.temperature == 0:
        remedy = (
            "; a policy with 'sampling', such as {'temperature': 1}, accepts temperature 0"
            if isinstance(context.policy, SearchPolicy)
            else ""
        )
        raise PolicyError(
            "temperature",
            f"is 0; all {width} candidates would be the same, so method "
            f"{context.policy.method!r} needs a temperature above 0{remedy}",
            reason="combination",
        )
    tokens = context.policy.most_tokens(params.max_tokens) * choices
    if tokens > limit:
        drawn = width * params.max_tokens * choices
        rollouts = " and their rollouts" if tokens > drawn else ""
        times = f" × {choices} answers" if choices > 1 else ""
        raise PolicyError(
            length_field,
            f"is {params.max_tokens}; {width} candidates{times}{rollouts} would be {tokens} "
            f"tokens, and this server accepts up to {limit}",
            reason="limit",
        )
