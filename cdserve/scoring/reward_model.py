"""A sequence-classification model's score as a reward, from whatever serves the model."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cdserve.errors import RewardFailure, safe_repr
from cdserve.scoring.batching import Batcher
from cdserve.scoring.ensemble import Aggregate
from cdserve.scoring.reward import Response, Reward

Outputs = Sequence[Sequence[float]]
"""All outputs of a model for one dialogue, raw: before any sigmoid or softmax.

One row, or one a step: at each marker.
"""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What a reward model reads: one of both, depending on whether it has a chat template."""

    text: str
    """The prompt and the response."""
    messages: str
    """The conversation that the response ends, in JSON; content is text or null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutput:
    """One output of a served model; rewards of the same model share its queue."""

    queue: Batcher[Dialogue, Outputs]
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How a process reward model reads a response (arXiv 2305.20050): step by step.

    Attributes:
        marker: what stands after each step, in the place of the separator.
        separator: what steps end with.
        aggregate: of the steps' rewards.
        probability: whether a step's reward is the label's probability, or its raw output.
    """

    marker: str
    separator: str
    aggregate: Aggregate
    probability: bool

    def split(self, text: str) -> list[str]:
        """The steps of a response; a last one that has not ended is one too."""
        parts = text.replace(self.marker, "").split(self.separator)
        return [part for part in parts if part.strip()] or [""]

    def reward(self, rows: Outputs, column: int) -> float:
        """The aggregate of the label's rewards at each step."""
        if not self.probability:
            return self.aggregate([row[column] for row in rows])
        return self.aggregate([_probability(row, column) for row in rows])


STEP_AGGREGATES: Mapping[str, Aggregate] = {
    "last": lambda values: values[-1],
    "min": min,
    "mean": statistics.fmean,
    "product": math.prod,
}


def _probability(row: Sequence[float], column: int) -> float:
    logits = [0.0, *row] if len(row) == 1 else row
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    return weights[-1 if len(row) == 1 else column] / math.fsum(weights)


class RewardModel(Reward):
    """What a model trained on whole responses gives a response, or one that reads it by steps.

    The response stands as the assistant's whole turn, unfinished or not. It is tokenised anew: the
    model may have another vocabulary.

    Args:
        output: where the scores come from.
        prefixes: whether the operator takes them for unfinished responses too.
        steps: how a process reward model reads it; None for a model of whole responses.
    """

    kind: ClassVar[str] = "reward_model"
    reads_text = True

    def __init__(self, output: ModelOutput, *, prefixes: bool, steps: Steps | None = None) -> None:
        self._queue = output.queue
        self._column = output.column
        self._steps = steps
        self.prefixes = prefixes

    async def score(self, responses: Sequence[Response]) -> list[float]:
        if self._steps is None:
            found = await self._queue.score([_dialogue(one, one.text) for one in responses])
            return [row[self._column] for (row,) in found]
        split = [self._steps.split(response.text) for response in responses]
        texts = ["".join(step + self._steps.marker for step in steps) for steps in split]
        found = await self._queue.score(list(map(_dialogue, responses, texts)))
        # The last ones: a prompt may hold markers too.
        return [
            self._steps.reward(rows[-len(steps) :], self._column)
            for rows, steps in zip(found, split, strict=True)
        ]


def _dialogue(response: Response, text: str) -> Dialogue:
    asked = response.messages
    if asked is None:
        asked = [{"role": "user", "content": response.prompt}]
    messages = [*map(_in_text, asked), {"role": "assistant", "content": text}]
    if len(asked) > 1 and asked[-1].get("role") == "assistant":  # the response goes on with it
        begun = messages.pop(-2)
        messages[-1]["content"] = (begun.get("content") or "") + text
    return Dialogue(response.prompt + text, json.dumps(messages))


def _in_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its content as one text: templates of reward models take no parts."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return dict(message)
    return {**message, "content": "\n".join(map(_part, content))}


def _part(part: str | Mapping[str, Any]) -> str:
    if isinstance(part, str):
        return part
    if "text" not in part:
        kind = safe_repr(part.get("type"))
        raise RewardFailure(f"failed: a reward model reads text; a message has a part {kind}")
    return str(part["text"])
