"""A prompt with the whole responses that were drawn for it, out of the journal of answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdserve.prompts import Prompt

SEVERAL = ("best_of_n", "best_of_poisson", "rejection")
"""Methods whose candidates are whole responses. Those of the others are blocks, and of their
answers one response is whole, the one returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response from its beginning to its end.

    Attributes:
        tokens: the end token included.
        finish_reason: ``stop``: it ended by itself; ``length``: ``max_tokens`` cut it.
        score: the weighted sum of its rewards.
        rewards: raw, by name; None where one failed.
        logprob: log p in nats, where the server knows it.
        chosen: whether the policy returned it.
    """

    text: str
    tokens: int
    finish_reason: str
    score: float
    rewards: Mapping[str, float | None]
    logprob: float | None
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What came back for a prompt.

    Attributes:
        index: the prompt's place in the file, from 0.
        responses: in the order they were drawn; one of them is chosen.
        kl: the report's, without its flag.
        accepted: the report's, of methods that may accept none.
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
        """Whether a reward is missing, so that scores are not those of other prompts."""
        return any(None in response.rewards.values() for response in self.responses)


def read_answer(record: Mapping[str, Any], rewards: Sequence[str]) -> Answered:
    """The answer in a record of the journal.

    Args:
        record: with the prompt's ``index``, ``prompt``, ``seed``, and the answer's ``report``, a
            trace included.
        rewards: names of the policy's rewards.
    """
    report = record["report"]
    whole = _drawn if report["method"] in SEVERAL else _returned
    return Answered(
        index=record["index"],
        prompt=record["prompt"],
        seed=record["seed"],
        responses=whole(report, rewards),
        kl={key: value for key, value in report["kl"].items() if key != "flag"},
        accepted=report.get("accepted"),
    )


def _drawn(report: Mapping[str, Any], rewards: Sequence[str]) -> list[Response]:
    (decision,) = report["trace"]
    return [
        Response(
            text=one["text"],
            tokens=one["tokens"],
            finish_reason=one["finish_reason"],
            score=one["score"],
            rewards=_filled(one["rewards"], rewards),
            logprob=one["logprob"],
            chosen=one["chosen"],
        )
        for one in decision["candidates"]
    ]


def _returned(report: Mapping[str, Any], rewards: Sequence[str]) -> list[Response]:
    """The blocks taken, as the one response that they are."""
    blocks = [one for step in report["trace"] for one in step["candidates"] if one["chosen"]]
    logprobs = [block["logprob"] for block in blocks]
    return [
        Response(
            text="".join(block["text"] for block in blocks),
            tokens=sum(block["tokens"] for block in blocks),
            finish_reason=blocks[-1]["finish_reason"],
            score=report["score"],
            rewards=_filled(report["rewards"], rewards),
            logprob=None if None in logprobs else math.fsum(logprobs),
            chosen=True,
        )
    ]


def _filled(found: Mapping[str, float], names: Sequence[str]) -> dict[str, float | None]:
    return {name: found.get(name) for name in names}
