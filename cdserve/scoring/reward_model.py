"""Scores of a sequence-classification model as a reward; the model may be served anywhere."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cdserve.errors import RewardFailure, safe_repr
from cdserve.scoring.batching import Batcher
from cdserve.scoring.ensemble import Aggregate
from cdserve.scoring.reward import Response, Reward

Outputs = Sequence[Sequence[float]]
"""All raw outputs of a model for one dialogue, before any sigmoid or softmax.

One row, or one row per step, at its marker.
"""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Input of a reward model: ``messages`` if the model has a chat template, else ``text``."""

    text: str
    """Prompt and response."""
    messages: str
    """The conversation up to and including the response, as JSON; content is text or null."""

    @classmethod
    def of(cls, response: Response, text: str) -> "Dialogue":
        """The dialogue that ends with a response, with ``text`` as the response's text."""
        prompt = response.messages
        if prompt is None:
            prompt = [{"role": "user", "content": response.prompt}]
        messages = [*map(_in_text, prompt), {"role": "assistant", "content": text}]
        if len(prompt) > 1 and prompt[-1].get("role") == "assistant":  # the response goes on
            prefill = messages.pop(-2)
            messages[-1]["content"] = (prefill.get("content") or "") + text
        return cls(response.prompt + text, json.dumps(messages))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutput:
    """One output of a served model; rewards of the same model share its queue."""

    queue: Batcher[Dialogue, Outputs]
    column: int
    independent: bool = False
    """Whether several labels may hold at once, each with its own probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Division of a response into steps for a process reward model (arXiv 2305.20050).

    Attributes:
        marker: text after each step in the model's input, in place of the separator.
        separator: text that ends a step of a response.
        aggregate: function of the steps' rewards.
        probability: whether a step's reward is the label's probability instead of its raw output.
    """

    marker: str
    separator: str
    aggregate: Aggregate
    probability: bool

    def split(self, text: str) -> list[str]:
        """Steps of a response, an unfinished last one included."""
        parts = text.replace(self.marker, "").split(self.separator)
        return [part for part in parts if part.strip()] or [""]

    def reward(self, rows: Outputs, column: int) -> float:
        """Aggregate of the steps' rewards by one label."""
        if not self.probability:
            return self.aggregate([row[column] for row in rows])
        return self.aggregate([math.exp(log_probability(row, column)) for row in rows])


STEP_AGGREGATES: Mapping[str, Aggregate] = {
    "last": lambda values: values[-1],
    "min": min,
    "mean": statistics.fmean,
    "product": math.prod,
}


Value = Literal["logit", "log_prob", "prob"]
"""Reward made of an output: itself, or the logarithm of its probability, or the probability."""


def log_probability(row: Sequence[float], column: int, independent: bool = False) -> float:
    """log of a label's probability, in nats, from the raw outputs of all labels.

    The probability is a softmax over the labels, or the sigmoid of a single or independent label.
    """
    logits = [row[column], 0.0] if independent or len(row) == 1 else row
    top = max(logits)
    total = math.fsum(math.exp(logit - top) for logit in logits)
    return min(0.0, row[column] - top - math.log(total))


class RewardModel(Reward):
    """Reward of an outcome model, trained on whole responses, or of a process reward model.

    The response is the assistant's whole turn, finished or not. It is tokenised again, since the
    model may have another vocabulary.

    Args:
        output: source of the scores.
        prefixes: whether the operator uses the scores for unfinished responses too.
        value: the reward made of the output of an outcome model.
        steps: steps of a process reward model; None for an outcome model.
    """

    kind: ClassVar[str] = "reward_model"
    reads_text = True

    def __init__(
        self,
        output: ModelOutput,
        *,
        prefixes: bool,
        value: Value = "logit",
        steps: Steps | None = None,
    ) -> None:
        self._queue = output.queue
        self._column = output.column
        self._independent = output.independent
        self._value = value
        self._steps = steps
        self.prefixes = prefixes

    async def score(self, responses: Sequence[Response]) -> list[float]:
        if self._steps is None:
            dialogues = [Dialogue.of(response, response.text) for response in responses]
            return [self._reward(row) for (row,) in await self._queue.score(dialogues)]
        split = [self._steps.split(response.text) for response in responses]
        texts = ["".join(step + self._steps.marker for step in steps) for steps in split]
        outputs = await self._queue.score(list(map(Dialogue.of, responses, texts)))
        # The last rows: a prompt may contain markers too.
        return [
            self._steps.reward(rows[-len(steps) :], self._column)
            for rows, steps in zip(outputs, split, strict=True)
        ]

    def _reward(self, row: Sequence[float]) -> float:
        if self._value == "logit":
            return row[self._column]
        log_p = log_probability(row, self._column, self._independent)
        return log_p if self._value == "log_prob" else math.exp(log_p)


def tokens(tokenizer: Any, dialogue: Dialogue) -> list[int]:
    """Token ids of a dialogue: by the chat template, or of the plain text if there is none."""
    if getattr(tokenizer, "chat_template", None) is None:
        plain: list[int] = tokenizer.encode(dialogue.text)
        return plain
    templated: list[int] = tokenizer.apply_chat_template(
        json.loads(dialogue.messages), tokenize=True, return_dict=False
    )
    return templated


def _in_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its content as one text: reward models' templates accept no parts."""
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
