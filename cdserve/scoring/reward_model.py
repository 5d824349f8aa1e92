"""A sequence-classification model's score as a reward, from whatever serves the model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cdserve.scoring.batching import Batcher
from cdserve.scoring.reward import Response, Reward

Outputs = Sequence[float]
"""All outputs of a model for one dialogue, raw: before any sigmoid or softmax."""


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


class RewardModel(Reward):
    """What a model trained on whole responses gives a response.

    The response stands as the assistant's whole turn, unfinished or not. It is tokenised anew: the
    model may have another vocabulary.

    Args:
        output: where the scores come from.
        prefixes: whether the operator takes them for unfinished responses too.
    """

    kind: ClassVar[str] = "reward_model"
    reads_text = True

    def __init__(self, output: ModelOutput, *, prefixes: bool) -> None:
        self._queue = output.queue
        self._column = output.column
        self.prefixes = prefixes

    @property
    def counters(self) -> Mapping[str, int]:
        return self._queue.counters

    async def score(self, responses: Sequence[Response]) -> list[float]:
        found = await self._queue.score([_dialogue(response) for response in responses])
        return [outputs[self._column] for outputs in found]


def _dialogue(response: Response) -> Dialogue:
    asked = response.messages
    if asked is None:
        asked = [{"role": "user", "content": response.prompt}]
    messages = [*map(_in_text, asked), {"role": "assistant", "content": response.text}]
    if len(asked) > 1 and asked[-1].get("role") == "assistant":  # the response goes on with it
        begun = messages.pop(-2)
        messages[-1]["content"] = (begun.get("content") or "") + response.text
    return Dialogue(response.prompt + response.text, json.dumps(messages))


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
        raise ValueError(f"a reward model reads text; a message has a part {part.get('type')!r}")
    return str(part["text"])
