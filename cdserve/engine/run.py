"""What one HTTP request's policy needs on its way through vLLM's serving code, and brings back."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdserve import report
from cdserve.decoders import Decision, Decoder
from cdserve.observability import metrics
from cdserve.policy import Policy
from cdserve.report import Report, TracedDecision
from cdserve.scoring import Objective


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class AlignmentRun:
    """A validated policy with its decoder and objective; collects a report for each choice."""

    policy: Policy
    decoder: type[Decoder]
    objective: Objective
    steering: Mapping[str, Any] = field(default_factory=dict)
    """What the worker is told of the distribution to draw tokens from, ``tilt`` and ``mix``, and of
    the ``models`` to run beside."""
    conversations: Sequence[Sequence[Mapping[str, Any]]] = ()
    """The messages of each prompt of a chat request, for rewards."""
    prompts: list[Sequence[int]] = field(default_factory=list)
    """Token ids of the prompts begun; a completions request may hold several."""
    reports: dict[tuple[int, int], Report] = field(default_factory=dict)
    """By prompt and choice; a choice's report is there before its last output is."""
    decisions: list[tuple[int, Decision]] = field(default_factory=list)
    """With the index of the choice; a decision is there before its output is."""
    began: float = field(default_factory=time.monotonic)
    """When the request arrived."""

    def __repr__(self) -> str:
        """Short: vLLM may log the sampling parameters it rides in."""
        return f"AlignmentRun({self.policy.method})"

    @property
    def steered(self) -> bool:
        """Whether tokens are drawn from another distribution than the base model's."""
        return bool(self.steering.keys() & {"tilt", "mix"})

    @property
    def left(self) -> float | None:
        """Seconds until the deadline, 0 once it has passed; None where there is none."""
        deadline = self.policy.deadline_ms
        if deadline is None:
            return None
        return max(0.0, self.began + deadline / 1000 - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether the deadline has passed."""
        return self.left == 0

    def begin(self, prompt: Sequence[int]) -> int:
        """Takes note of a prompt's token ids; its index."""
        self.prompts.append(prompt)
        return len(self.prompts) - 1

    def messages(self, prompt: int) -> Sequence[Mapping[str, Any]] | None:
        """Those of a chat request's prompt; None where they are not known."""
        return self.conversations[prompt] if prompt < len(self.conversations) else None

    def traced(self, since: int) -> list[TracedDecision]:
        """The decisions after the first ``since``, where the policy asks for a trace."""
        if self.policy.report != "trace":
            return []
        made = self.decisions[since:]
        return [{**report.traced(decision), "choice": choice} for choice, decision in made]

    def report_on(self, decisions: Sequence[Decision], prompt: int, choice: int) -> Report:
        """Makes a choice's report of its decisions, and counts it."""
        policy = self.policy
        made = report.report(
            policy.method, decisions, policy.report == "trace", policy.budget, policy.deadline_ms
        )
        self.reports[prompt, choice] = made
        metrics.count(made, decisions)
        return made

    def report(self) -> Report | None:
        """The answer's report, once all choices are done; None if none was asked for."""
        if self.policy.report == "none" or not self.reports:
            return None
        return report.merged([made for _, made in sorted(self.reports.items())])
