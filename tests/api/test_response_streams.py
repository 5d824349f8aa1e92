"""Errors in a stream of the Responses API."""

import json
import logging
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from cdserve.api.wire import ResponsesWriter
from cdserve.errors import ScoringError
from cdserve.failures import Details
from cdserve.scoring import Objective

SECRET = "hunter2"


class Created:
    """Stand-in for vLLM's first event."""

    type = "response.created"
    response = SimpleNamespace(id="resp_7")

    def model_dump_json(self, **_: Any) -> str:
        return "{}"


async def broken(error: Exception) -> AsyncGenerator[Any, None]:
    yield Created()
    raise error


async def error_event(error: Exception, details: Details = "log") -> dict[str, Any]:
    """The last event of a stream that fails with ``error``."""
    objective = Objective(weights={}, rewards={}, details=details)
    context: Any = SimpleNamespace(
        objective=objective, report=lambda: None, traced=lambda start: []
    )
    *_, last = [event async for event in ResponsesWriter(context, None).events(broken(error))]
    name, _, data = last.partition("\ndata: ")
    assert name == "event: error"
    event: dict[str, Any] = json.loads(data)
    assert event["sequence_number"] == 1
    return event


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError])
async def test_unexpected_exception_in_a_stream_shows_only_class_and_id(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "vllm.cdserve"):
        event = await error_event(kind(SECRET))
    assert SECRET not in json.dumps(event)
    message = event["message"]
    assert message.startswith(f"the request failed with {kind.__name__} (error id ")
    assert (event["code"], event["error"]["code"]) == ("InternalServerError", 500)
    (record,) = caplog.records
    line = record.getMessage()
    assert message.partition("error id ")[2].partition(";")[0] in line
    assert "request resp_7" in line
    assert SECRET in line


async def test_stream_error_has_the_text_with_error_details_client() -> None:
    assert SECRET in (await error_event(RuntimeError(SECRET), "client"))["message"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ScoringError("reward 'a' failed"), 500),
        (VLLMValidationError("reward 'a' failed", parameter="top_k"), 400),
    ],
)
async def test_expected_error_in_a_stream_keeps_its_message(error: Exception, code: int) -> None:
    event = await error_event(error)
    assert "reward 'a' failed" in event["message"]
    assert event["error"]["code"] == code
