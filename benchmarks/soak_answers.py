"""Answers of the soak test in one form for all routes, and their checks."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
from soak_requests import BATCH, CHAT, COMPLETIONS, MESSAGES, RESPONSES, SCORE, Asked

_ENDS = {
    **{route: {"stop", "length"} for route in (COMPLETIONS, CHAT, BATCH)},
    RESPONSES: {"completed", "incomplete"},
    MESSAGES: {"end_turn", "max_tokens", "stop_sequence"},
    SCORE: {"scored"},
}
"""Valid finish reasons of a choice."""
_DECLARED = "reward 'error' "


@dataclass(slots=True)
class Choice:
    """A choice: text, finish reasons in order of arrival, and log-probabilities, if any."""

    text: str = ""
    ends: list[str] = field(default_factory=list)
    logprobs: int | None = None
    prompt_logprobs: bool = False


@dataclass(slots=True)
class Answer:
    """An answer.

    Attributes:
        status, content: as received.
        error: what is said to be wrong, by the answer or by an event of its stream.
        unreadable: why it has not the form of its route's answers, if it has not.
        ended: whether a stream has come to its own end.
    """

    status: int
    content: str = ""
    error: str | None = None
    unreadable: str | None = None
    retry_after: str | None = None
    choices: dict[int, Choice] = field(default_factory=dict)
    report: dict[str, Any] | None = None
    tokens: int | None = None
    ended: bool = True


async def ask(client: httpx2.AsyncClient, asked: Asked) -> Answer:
    """Sends a request and reads the whole answer."""
    answer = await client.post(asked.route, json=asked.body, headers=asked.headers)
    found = Answer(answer.status_code, answer.text, retry_after=answer.headers.get("retry-after"))
    try:
        _read(found, asked)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        found.unreadable = repr(error)
    return found


def judged(asked: Asked, answer: Answer) -> tuple[str, str | None]:
    """The outcome of a request, and a description of the problem if it is not an expected one."""
    if answer.status == 503 and answer.retry_after is not None:
        return "refused", None
    if asked.refused or 400 <= answer.status < 500:
        right = asked.refused and answer.status == 400
        return "refused", None if right else f"status {answer.status}"
    if answer.error is not None:
        right = asked.may_fail and _DECLARED in answer.error
        return "failed", None if right else "an error that nobody declared"
    return "answered", fault(asked, answer)


def fault(asked: Asked, answer: Answer) -> str | None:
    """A description of what is missing from or unexpected in an answer; None if it is correct."""
    if answer.unreadable is not None:
        return f"unreadable: {answer.unreadable}"
    if not answer.ended:
        return "the stream has no end"
    if sorted(answer.choices) != list(range(asked.answers)):
        return f"choices {sorted(answer.choices)}, of {asked.answers}"
    for index, choice in answer.choices.items():
        if len(choice.ends) != 1 or choice.ends[0] not in _ENDS[asked.route]:
            return f"choice {index} ends with {choice.ends}"
        if asked.logprobs and not choice.logprobs and choice.text:
            return f"choice {index} has no logprobs"
        if not asked.logprobs and choice.logprobs:
            return f"choice {index} has logprobs that were not asked for"
        if asked.prompt_logprobs and not choice.prompt_logprobs:
            return f"choice {index} has no prompt_logprobs"
    counted = sum(choice.logprobs or 0 for choice in answer.choices.values())
    whole = asked.logprobs and answer.tokens is not None and not asked.body.get("echo")
    # vLLM's stream of a response has no delta for a token without text, such as EOS.
    without = 1 if asked.route == RESPONSES and asked.body.get("stream") else 0
    if whole and not 0 <= (answer.tokens or 0) - counted <= without:
        return f"{counted} logprobs of {answer.tokens} tokens"
    return _fault_of_report(asked, answer.report)


def _fault_of_report(asked: Asked, report: dict[str, Any] | None) -> str | None:
    policy = asked.policy or {"method": "none"}
    if policy["method"] == "none" or policy.get("report") == "none":
        return None if report is None else "a report that was not asked for"
    if report is None:
        return "no report"
    if report["method"] != policy["method"]:
        return f"a report of {report['method']}"
    if asked.answers > 1 and len(report.get("choices") or ()) != asked.answers:
        return "not a report of each choice"
    numbers = (report["score"], report["kl"]["bound"], *report["rewards"].values())
    return None if all(map(math.isfinite, numbers)) else "a report with what is no number"


def _read(found: Answer, asked: Asked) -> None:
    if found.status != 200:
        found.error = found.content
    elif asked.body.get("stream"):
        found.ended = "data: [DONE]" in found.content or asked.route in (RESPONSES, MESSAGES)
        for event in _events(found.content):
            _read_event(found, asked.route, event)
    else:
        _read_whole(found, asked.route, _json(found.content))


def _events(content: str) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        if line.startswith("data: {"):
            yield _json(line.removeprefix("data: "))


def _json(content: str) -> dict[str, Any]:
    """Parses strict JSON, without NaN."""
    found: dict[str, Any] = json.loads(content, parse_constant=_no_number)
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _read_event(found: Answer, route: str, event: dict[str, Any]) -> None:
    if event.get("error"):
        found.error = json.dumps(event["error"])
    elif route in (COMPLETIONS, CHAT):
        _read_choices(found, event)
    elif route == RESPONSES:
        if event["type"] in ("response.completed", "response.incomplete"):
            _read_whole(found, route, event["response"])
    elif event["type"] == "content_block_delta":
        _choice(found, 0).text += event["delta"].get("text", "")
    elif event["type"] == "message_delta":
        _choice(found, 0).ends.append(event["delta"]["stop_reason"])
        found.report = event.get("alignment")


def _read_whole(found: Answer, route: str, content: dict[str, Any]) -> None:
    found.report = content.get("alignment")
    if route == RESPONSES:
        choice = _choice(found, 0)
        choice.ends.append(content["status"])
        for item in content["output"]:
            for part in item["content"]:
                choice.text += part["text"]
                choice.logprobs = _more(choice.logprobs, part.get("logprobs"))
        found.tokens = content["usage"]["output_tokens"]
    elif route == MESSAGES:
        choice = _choice(found, 0)
        choice.ends.append(content["stop_reason"])
        choice.text = "".join(part["text"] for part in content["content"])
    elif route == SCORE:
        for index, score in enumerate(content["scores"]):
            if math.isfinite(score["score"]):
                _choice(found, index).ends.append("scored")
    else:
        _read_choices(found, content)


def _read_choices(found: Answer, content: dict[str, Any]) -> None:
    """Updates the fields from a whole answer or from a chunk."""
    found.report = content.get("alignment", found.report)
    if content.get("usage"):
        found.tokens = content["usage"]["completion_tokens"]
    for one in content["choices"]:
        choice, logprobs = _choice(found, one["index"]), one.get("logprobs") or {}
        spoken = one.get("message") or one.get("delta") or {"content": one.get("text")}
        choice.text += spoken.get("content") or ""
        entries = logprobs.get("content") or logprobs.get("token_logprobs")
        choice.logprobs = _more(choice.logprobs, entries)
        asked_for = one.get("prompt_logprobs") or content.get("prompt_logprobs")
        choice.prompt_logprobs |= asked_for is not None
        if one.get("finish_reason"):
            choice.ends.append(one["finish_reason"])


def _choice(found: Answer, index: int) -> Choice:
    return found.choices.setdefault(index, Choice())


def _more(count: int | None, entries: list[Any] | None) -> int | None:
    return count if entries is None else (count or 0) + len(entries)
