"""One prompt under a policy, on its way through the engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cdserve.decoders import Decision
from cdserve.engine.context import AlignmentContext
from cdserve.engine.vllm import SamplingParams
from cdserve.worker.request import WorkerRequest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AlignedRequest:
    """One prompt under a policy.

    Attributes:
        context: the policy and its objective, shared by the prompts of an HTTP request.
        index: index of the prompt in the HTTP request.
        inputs: the prompt as vLLM's serving code passed it, with a cache salt for its members.
        prompt: prompt token ids.
        prompt_text: the prompt as text; empty where no reward or judge reads text.
        params: the client's sampling parameters; ``max_tokens`` bounds the whole response.
        request_id: vLLM's id. Clients choose it, so concurrent requests may share it.
        engine_id: prefix of the ids of this request's engine requests; unique.
        options: further arguments of ``EngineClient.generate`` (LoRA, priority, tracing).
        parsed: whether vLLM parses the text for tool calls or reasoning.
    """

    context: AlignmentContext
    index: int
    inputs: Any
    prompt: list[int]
    prompt_text: str
    params: SamplingParams
    request_id: str
    engine_id: str
    options: Mapping[str, Any]
    parsed: bool

    @property
    def cache_salt(self) -> str | None:
        """Salt of the prefix cache, for all engine requests of this prompt."""
        salt: str | None = self.inputs.get("cache_salt")
        return salt

    @property
    def worker_request(self) -> WorkerRequest:
        """Part that all engine requests of this prompt ask of the worker."""
        asked = self.context.worker_request
        if asked.tilt is None and not self.context.objective.reads_values:
            return asked  # no head runs
        return replace(asked, response_start=len(self.prompt))

    @property
    def messages(self) -> Sequence[Mapping[str, Any]] | None:
        """The messages of a chat request; None for a completion."""
        return self.context.messages(self.index)

    def record(self, decision: Decision, choice: int) -> None:
        """Records a decision, which ends its drafts."""
        index = self.choice_index(choice)
        self.context.decisions.append((index, decision))
        if self.context.drafts is not None:
            self.context.drafts.end(index)

    def choice_index(self, choice: int) -> int:
        """Index of a choice of this prompt among the choices of all prompts."""
        count: int = self.params.n
        return self.index * count + choice
