"""Rows of training data, one function per format, with the column names of TRL.

A text prompt makes rows in TRL's standard form, a chat prompt in its conversational form. Omitted
prompts and responses are counted by reason.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cdserve.collection.prompt_result import PromptResult, Response

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
    """Filters of TRL's formats.

    Attributes:
        margin: omit pairs whose scores differ by at most this much.
        min_score: omit best responses below this score; None for no minimum.
        threshold: unpaired responses above this score are desirable, all others undesirable. None
            for the mean score of the prompt's responses; responses exactly at the mean are omitted.
        ended_only: whether to omit responses that did not end by themselves.
    """

    margin: float = 0.0
    min_score: float | None = None
    threshold: float | None = None
    ended_only: bool = False


@dataclass(frozen=True, slots=True)
class FormattedRows:
    """The rows of a prompt, and the number of omitted rows by reason."""

    rows: Sequence[Row] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


def preference(result: PromptResult, filters: Filters) -> FormattedRows:
    """A pair: the responses with the highest and the lowest score."""
    if result.failed:
        return _without(REWARD_FAILED)
    usable = _usable(result, filters)
    if len(usable) < 2:
        return _without(TOO_FEW if len(result.responses) < 2 else NOT_ENDED)
    best, worst = _best(usable), min(usable, key=_score)
    apart = best.score - worst.score > filters.margin
    if not apart and len({response.text for response in usable}) > 1:
        return _without(MARGIN)
    if best.text == worst.text:
        return _without(IDENTICAL)
    row = {
        "prompt": result.prompt,
        "chosen": _completion(result, best),
        "rejected": _completion(result, worst),
        "score_chosen": best.score,
        "score_rejected": worst.score,
        "index": result.index,
    }
    return FormattedRows([row])


def sft(result: PromptResult, filters: Filters) -> FormattedRows:
    """A completion: the response with the highest score."""
    if result.failed:
        return _without(REWARD_FAILED)
    usable = _usable(result, filters)
    if not usable:
        return _without(NOT_ENDED)
    best = _best(usable)
    if filters.min_score is not None and best.score < filters.min_score:
        return _without(LOW)
    row = {
        "prompt": result.prompt,
        "completion": _completion(result, best),
        "score": best.score,
        "index": result.index,
    }
    return FormattedRows([row])


def unpaired(result: PromptResult, filters: Filters) -> FormattedRows:
    """All responses, each labelled by whether its score is above the threshold."""
    if result.failed:
        return _without(REWARD_FAILED, len(result.responses))
    usable = _usable(result, filters)
    left_out = {NOT_ENDED: len(result.responses) - len(usable)}
    threshold, labelled = filters.threshold, usable
    if threshold is None and usable:
        # statistics.mean is exact: the mean of equal scores is that score.
        threshold = statistics.mean(map(_score, usable))
        labelled = [response for response in usable if response.score != threshold]
        left_out[AT_MEAN] = len(usable) - len(labelled)
    rows = [
        {
            "prompt": result.prompt,
            "completion": _completion(result, response),
            "label": threshold is not None and response.score > threshold,
            "score": response.score,
            "index": result.index,
        }
        for response in labelled
    ]
    return FormattedRows(rows, {reason: count for reason, count in left_out.items() if count})


def candidates(result: PromptResult, about: Mapping[str, Any]) -> FormattedRows:
    """All responses of a prompt in one row.

    Args:
        about: columns with the same value in all rows: policy, sampling parameters, model.
    """
    row = {
        "index": result.index,
        "prompt": result.prompt,
        "candidates": [asdict(response) for response in result.responses],
        "kl": dict(result.kl),
        **({} if result.accepted is None else {"accepted": result.accepted}),
        "seed": result.seed,
        **about,
    }
    return FormattedRows([row])


TRL: Mapping[str, Callable[[PromptResult, Filters], FormattedRows]] = {
    "preference": preference,
    "sft": sft,
    "unpaired": unpaired,
}
"""The formats of TRL's trainers: DPO, SFT, KTO."""

FORMATS = (*TRL, "candidates")


def _usable(result: PromptResult, filters: Filters) -> list[Response]:
    return [
        response
        for response in result.responses
        if response.finish_reason == "stop" or not filters.ended_only
    ]


def _best(responses: Sequence[Response]) -> Response:
    """The first response with the highest score, like the server's argmax."""
    return max(responses, key=_score)


def _score(response: Response) -> float:
    return response.score


def _completion(result: PromptResult, response: Response) -> str | list[dict[str, str]]:
    if isinstance(result.prompt, str):
        return response.text
    return [{"role": "assistant", "content": response.text}]


def _without(reason: str, count: int = 1) -> FormattedRows:
    return FormattedRows(left_out={reason: count})
