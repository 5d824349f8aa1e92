"""A prompt with its whole responses, read from a record of the journal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdserve.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A whole response.

    Attributes:
        tokens: number of tokens, including the end token.
        finish_reason: ``stop`` if the response ended by itself, ``length`` if it was cut.
        score: weighted sum of the rewards.
        rewards: raw rewards by name; None for a reward that failed.
        logprob: log p in nats; None if the server does not know it.
        chosen: whether the policy returned this response.
    """

    text: str
    tokens: int
    finish_reason: str
    score: float
    rewards: Mapping[str, float | None]
    logprob: float | None
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """The responses to a prompt.

    Attributes:
        index: position of the prompt in its file, from 0.
        responses: in the order they were drawn; exactly one is chosen.
        kl: the report's ``kl`` without ``flag``.
        accepted: the report's ``accepted``; None for methods without it.
    """

    index: int
    prompt: Prompt
    seed: int
    responses: Sequence[Response]
    kl: Mapping[str, Any]
    accepted: bool | None

    @property
    def chosen(self) -> Response:
        """The response that the policy returned."""
        return next(response for response in self.responses if response.chosen)

    @property
    def failed(self) -> bool:
        """Whether a reward is missing; the scores then do not compare to other prompts' scores."""
        return any(None in response.rewards.values() for response in self.responses)


def read_record(
    record: Mapping[str, Any], rewards: Sequence[str], whole_responses: bool
) -> PromptResult:
    """The responses in a record of the journal.

    Args:
        record: has ``index``, ``prompt``, ``seed``, and a ``report`` with a trace.
        rewards: names of the policy's rewards.
        whole_responses: whether the method's candidates are whole responses. If they are blocks,
            the returned response is the only whole one.
    """
    report = record["report"]
    read = _candidates if whole_responses else _returned
    return PromptResult(
        index=record["index"],
        prompt=record["prompt"],
        seed=record["seed"],
        responses=read(report, rewards),
        kl={key: value for key, value in report["kl"].items() if key != "flag"},
        accepted=report.get("accepted"),
    )


def _candidates(report: Mapping[str, Any], rewards: Sequence[str]) -> list[Response]:
    (decision,) = report["trace"]
    return [
        Response(
            text=candidate["text"],
            tokens=candidate["tokens"],
            finish_reason=candidate["finish_reason"],
            score=candidate["score"],
            rewards=_by_name(candidate["rewards"], rewards),
            logprob=candidate["logprob"],
            chosen=candidate["chosen"],
        )
        for candidate in decision["candidates"]
    ]


def _returned(report: Mapping[str, Any], rewards: Sequence[str]) -> list[Response]:
    """The chosen blocks, joined to the returned response."""
    blocks = [block for step in report["trace"] for block in step["candidates"] if block["chosen"]]
    logprobs = [block["logprob"] for block in blocks]
    return [
        Response(
            text="".join(block["text"] for block in blocks),
            tokens=sum(block["tokens"] for block in blocks),
            finish_reason=blocks[-1]["finish_reason"],
            score=report["score"],
            rewards=_by_name(report["rewards"], rewards),
            logprob=None if None in logprobs else math.fsum(logprobs),
            chosen=True,
        )
    ]


def _by_name(rewards: Mapping[str, float], names: Sequence[str]) -> dict[str, float | None]:
    return {name: rewards.get(name) for name in names}
