"""Rows of training data, one function a format. Those of TRL have the columns that TRL names.

A text prompt makes rows in TRL's standard form, a chat prompt in its conversational form. What is
left out of a format is counted by its reason.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cdserve.collection.answered import Answered, Response

Row = dict[str, Any]

REWARD_FAILED = "a reward failed"
NOT_ENDED = "not ended"
TOO_FEW = "fewer than two responses"
IDENTICAL = "equal texts"
MARGIN = "within the margin"
LOW = "below the minimum score"
AT_MEAN = "at the mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What is left out of TRL's formats.

    Attributes:
        margin: of pairs whose scores are no further apart.
        min_score: of best responses below it; None for none.
        threshold: unpaired responses above it are desirable, the others not; None for the mean
            score of the prompt's responses, at which a response is left out.
        ended_only: whether to leave out responses that did not end by themselves.
    """

    margin: float = 0.0
    min_score: float | None = None
    threshold: float | None = None
    ended_only: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """The rows of a prompt, and how many it has not, by reason."""

    rows: Sequence[Row] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


def preference(answered: Answered, filters: Filters) -> Made:
    """A pair: the response with the highest score against the one with the lowest."""
    if answered.failed:
        return _without(REWARD_FAILED)
    usable = _usable(answered, filters)
    if len(usable) < 2:
        return _without(TOO_FEW if len(answered.responses) < 2 else NOT_ENDED)
    best, worst = _best(usable), min(usable, key=_score)
    apart = best.score - worst.score > filters.margin
    if not apart and len({response.text for response in usable}) > 1:
        return _without(MARGIN)
    if best.text == worst.text:
        return _without(IDENTICAL)
    row = {
        "prompt": answered.prompt,
        "chosen": _completion(answered, best),
        "rejected": _completion(answered, worst),
        "score_chosen": best.score,
        "score_rejected": worst.score,
        "index": answered.index,
    }
    return Made([row])


def sft(answered: Answered, filters: Filters) -> Made:
    """A prompt and a completion: the response with the highest score."""
    if answered.failed:
        return _without(REWARD_FAILED)
    usable = _usable(answered, filters)
    if not usable:
        return _without(NOT_ENDED)
    best = _best(usable)
    if filters.min_score is not None and best.score < filters.min_score:
        return _without(LOW)
    row = {
        "prompt": answered.prompt,
        "completion": _completion(answered, best),
        "score": best.score,
        "index": answered.index,
    }
    return Made([row])


def unpaired(answered: Answered, filters: Filters) -> Made:
    """Every response by itself, with a label: whether its score is above the threshold."""
    if answered.failed:
        return _without(REWARD_FAILED, len(answered.responses))
    usable = _usable(answered, filters)
    left_out = {NOT_ENDED: len(answered.responses) - len(usable)}
    threshold, labelled = filters.threshold, usable
    if threshold is None and usable:
        # Exact: the mean of equal scores is their score, which a float sum may miss.
        threshold = statistics.mean(map(_score, usable))
        labelled = [response for response in usable if response.score != threshold]
        left_out[AT_MEAN] = len(usable) - len(labelled)
    rows = [
        {
            "prompt": answered.prompt,
            "completion": _completion(answered, response),
            "label": threshold is not None and response.score > threshold,
            "score": response.score,
            "index": answered.index,
        }
        for response in labelled
    ]
    return Made(rows, {reason: count for reason, count in left_out.items() if count})


def candidates(answered: Answered, about: Mapping[str, Any]) -> Made:
    """All there is to know of a prompt's responses, in one row.

    Args:
        about: columns that are the same in all rows: the policy, the sampling, the model.
    """
    row = {
        "index": answered.index,
        "prompt": answered.prompt,
        "candidates": [asdict(response) for response in answered.responses],
        "kl": dict(answered.kl),
        **({} if answered.accepted is None else {"accepted": answered.accepted}),
        "seed": answered.seed,
        **about,
    }
    return Made([row])


TRL: Mapping[str, Callable[[Answered, Filters], Made]] = {
    "preference": preference,
    "sft": sft,
    "unpaired": unpaired,
}
"""The formats that TRL's trainers read: DPO's, SFT's, KTO's."""

FORMATS = (*TRL, "candidates")


def _usable(answered: Answered, filters: Filters) -> list[Response]:
    return [
        response
        for response in answered.responses
        if response.finish_reason == "stop" or not filters.ended_only
    ]


def _best(responses: Sequence[Response]) -> Response:
    """The first drawn of those with the highest score, as the server's argmax takes it."""
    return max(responses, key=_score)


def _score(response: Response) -> float:
    return response.score


def _completion(answered: Answered, response: Response) -> str | list[dict[str, str]]:
    if isinstance(answered.prompt, str):
        return response.text
    return [{"role": "assistant", "content": response.text}]


def _without(reason: str, count: int = 1) -> Made:
    return Made(left_out={reason: count})
