"""The policy of one HTTP request, on its way through vLLM's serving code, and its reports."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cdserve import report
from cdserve.decoders import Decision, Decoder
from cdserve.engine.drafts import Drafts
from cdserve.observability import metrics
from cdserve.policy import Policy
from cdserve.report import Report, TracedDecision, UsedSampling
from cdserve.scoring import Extractor, Objective, PairwiseJudge
from cdserve.worker.request import WorkerRequest

CONTEXT_KEY = "cdserve.context"
"""Key in ``SamplingParams.extra_args`` that holds the context between the API and the engine."""


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class AlignmentContext:
    """A validated policy with its decoder and objective; collects a report for each choice.

    Attributes:
        policy: the policy.
        decoder: the decoder of its method.
        objective: what it maximises.
        refusal: text of a response that the policy's guard refuses.
        judge: compares the responses for a pairwise selection; None for other policies.
        extractor: finds the answer of each response for a vote; None for other policies.
        worker_request: part that all of its engine requests ask of the worker: tilt, mix, members.
        tools: whether the request has tools, for whose calls vLLM parses the text.
        conversations: messages of each prompt of a chat request, for rewards that read them.
        prompts: token ids of the prompts so far; a completions request may hold several.
        reports: by prompt and choice; there before the last output of a choice.
        decisions: with the index of their choice; there before the output of a decision.
        drafts: candidates that the engine draws now; None unless the policy's report is ``live``.
        sampling: sampling parameters that replaced the request's; None if the request's are used.
        started_at: when the request arrived, by ``time.monotonic``.
    """

    policy: Policy
    decoder: type[Decoder]
    objective: Objective
    refusal: str = ""
    judge: PairwiseJudge | None = None
    extractor: Extractor | None = None
    worker_request: WorkerRequest = field(default_factory=WorkerRequest)
    tools: bool = False
    conversations: Sequence[Sequence[Mapping[str, Any]]] = ()
    prompts: list[Sequence[int]] = field(default_factory=list)
    reports: dict[tuple[int, int], Report] = field(default_factory=dict)
    decisions: list[tuple[int, Decision]] = field(default_factory=list)
    drafts: Drafts | None = field(init=False)
    sampling: UsedSampling | None = None
    started_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        watched = replace(self.objective, final=None)
        self.drafts = Drafts(watched) if self.policy.report == "live" else None

    def __repr__(self) -> str:
        """Short: vLLM may log the sampling parameters that hold it."""
        return f"AlignmentContext({self.policy.method})"

    @property
    def reads_text(self) -> bool:
        """Whether a reward or a judge reads the prompt and the responses as text."""
        return self.objective.reads_text or self.judge is not None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline, 0 once it has passed; None without a deadline."""
        deadline = self.policy.deadline_ms
        if deadline is None:
            return None
        return max(0.0, self.started_at + deadline / 1000 - time.monotonic())

    @property
    def deadline_passed(self) -> bool:
        """Whether the deadline has passed."""
        return self.seconds_left == 0

    def add_prompt(self, token_ids: Sequence[int]) -> int:
        """Adds a prompt; returns its index."""
        self.prompts.append(token_ids)
        return len(self.prompts) - 1

    def messages(self, prompt: int) -> Sequence[Mapping[str, Any]] | None:
        """The messages of a chat request's prompt; None if there are none."""
        return self.conversations[prompt] if prompt < len(self.conversations) else None

    def traced(self, start: int) -> list[TracedDecision]:
        """The decisions from index ``start`` on, if the policy asks for a trace."""
        if not self.policy.traced:
            return []
        return [
            {**report.traced(decision), "choice": choice}
            for choice, decision in self.decisions[start:]
        ]

    def add_report(self, decisions: Sequence[Decision], prompt: int, choice: int) -> Report:
        """Adds the report of a choice's decisions, and counts them in the metrics."""
        policy = self.policy
        added = report.report(
            policy.method,
            decisions,
            policy.traced,
            policy.budget,
            policy.deadline_ms,
            self.sampling,
            policy.compares_prefixes and not policy.keeps_several,
        )
        self.reports[prompt, choice] = added
        metrics.count_response(added, decisions)
        return added

    def report(self) -> Report | None:
        """The report of all choices once they are done; None if the policy asks for none."""
        if self.policy.report == "none" or not self.reports:
            return None
        return report.merged([one for _, one in sorted(self.reports.items())])
