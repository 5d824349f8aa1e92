"""vLLM's request classes with the ``alignment`` field."""

from typing import Any

from pydantic import Field, PrivateAttr
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.sampling_params import SamplingParams

from cdserve.api.server import AlignmentServer
from cdserve.engine.run import AlignmentRun
from cdserve.errors import PolicyError, shown
from cdserve.plugin.rows import REQUEST_KEY
from cdserve.policy import FIELD

_DESCRIPTION = (
    "How to decode towards a reward: a preset's name, or an object with a method; "
    "GET /v1/alignment has their schemas."
)


class _Aligned:
    """What both request classes share. Mixed in before vLLM's class."""

    alignment: Any
    model: str | None
    _run: AlignmentRun | None
    _server: AlignmentServer

    def resolve(self, server: AlignmentServer) -> AlignmentRun | None:
        """Reads the policy off ``alignment`` or the model id, and checks it against the request.

        A preset's model id becomes the base model's.

        Raises:
            PolicyError: naming the field, the value and what is accepted.
        """
        preset = server.preset_of(self.model)
        if preset is not None:
            if self.alignment is not None:
                raise PolicyError(
                    f"model {shown(self.model)} is a preset already, and {FIELD} is given too; "
                    f"use model {shown(server.settings.model_name)} with {FIELD}",
                    FIELD,
                )
            self.alignment, self.model = preset, server.settings.model_name
        self._server = server
        self._run = server.run(self.alignment)
        if self._run is not None:
            _check_combination(self, self._run)
        return self._run

    @property
    def prompts(self) -> int:
        """Prompts in the request, each answered on its own."""
        return 1

    def to_sampling_params(self, *args: Any, **kwargs: Any) -> SamplingParams:
        """As vLLM's; the policy rides in ``extra_args``."""
        params = super().to_sampling_params(*args, **kwargs)  # type: ignore[misc]
        if self._run is not None:
            limit = self._server.settings.limits.max_candidate_tokens
            _check_params(params, self._run, self.prompts, limit)
            if params.structured_outputs is not None:  # vLLM's, of a tool call
                _check_grammar(self._run, "tools")
            params.extra_args = {**(params.extra_args or {}), REQUEST_KEY: self._run}
        return params


class AlignedCompletionRequest(_Aligned, CompletionRequest):  # type: ignore[misc]
    """A completions request with a policy."""

    alignment: Any = Field(default=None, description=_DESCRIPTION)
    _run: AlignmentRun | None = PrivateAttr(None)
    _server: AlignmentServer = PrivateAttr()

    @property
    def prompts(self) -> int:
        """Prompts in the request: a list of texts or of token lists holds several."""
        prompt = self.prompt
        several = isinstance(prompt, list) and not all(isinstance(item, int) for item in prompt)
        return len(prompt) if several else 1


class AlignedChatCompletionRequest(_Aligned, ChatCompletionRequest):  # type: ignore[misc]
    """A chat completions request with a policy."""

    alignment: Any = Field(default=None, description=_DESCRIPTION)
    _run: AlignmentRun | None = PrivateAttr(None)
    _server: AlignmentServer = PrivateAttr()

    def resolve(self, server: AlignmentServer) -> AlignmentRun | None:
        """As for completions; rewards may read the messages."""
        run = super().resolve(server)
        if run is not None:
            run.messages = self.messages
        return run


def _check_combination(request: Any, run: AlignmentRun) -> None:
    """Raises PolicyError for fields that no method, or not this one, can honour."""
    method = run.policy.method
    if request.use_beam_search:
        raise PolicyError(
            f"use_beam_search cannot be combined with method {method!r}, which samples its "
            "candidates",
            "use_beam_search",
        )
    if not run.policy.scores_prefixes:
        return
    # Across blocks the accepted tokens are the candidates' prompt, which these do not look at.
    for field, plain in _OUTPUT_ONLY.items():
        value = getattr(request, field)
        if value is not None and value != plain:
            raise PolicyError(
                f"{field} is {shown(value)}; it counts output tokens only, which method "
                f"{method!r} cannot honour across blocks (repetition_penalty, which counts the "
                "whole text, can be used)",
                field,
            )
    if request.extract_structured_outputs() is not None:
        form = request.response_format
        _check_grammar(run, "structured_outputs" if form is None else "response_format")


def _check_grammar(run: AlignmentRun, field: str) -> None:
    """Raises PolicyError where blocks would lose the state of the grammar that ``field`` makes."""
    if run.policy.scores_prefixes:
        raise PolicyError(
            f"grammar-constrained output cannot be combined with method {run.policy.method!r}: the "
            "grammar's state is lost between blocks; use 'best_of_n'",
            field,
        )


_OUTPUT_ONLY: dict[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "bad_words": [],
    "repetition_detection": None,
    "thinking_token_budget": None,
}


def _check_params(params: SamplingParams, run: AlignmentRun, prompts: int, limit: int) -> None:
    if REQUEST_KEY in (params.extra_args or {}):
        field = f"vllm_xargs.{REQUEST_KEY}"
        raise PolicyError(f"{field} is reserved; use the field {FIELD!r}", field)
    width = run.policy.width
    if width > 1 and params.temperature == 0:
        raise PolicyError(
            f"temperature is 0; all {width} candidates would be the same, so method "
            f"{run.policy.method!r} needs a temperature above 0",
            "temperature",
        )
    answers = prompts * params.n
    tokens = width * params.max_tokens * answers
    if tokens > limit:
        times = f" × {answers} answers" if answers > 1 else ""
        raise PolicyError(
            f"max_tokens is {params.max_tokens}; {width} candidates{times} would be {tokens} "
            f"tokens, and this server accepts up to {limit}",
            "max_tokens",
        )
