"""The ends that a stream is given where vLLM sends none."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from cdserve.api.streams import CHAT, ChoiceEnds


@pytest.fixture
def ends() -> ChoiceEnds:
    """Of a chat with two choices under a deadline."""
    run: Any = SimpleNamespace(policy=SimpleNamespace(deadline_ms=1), prompts=[[5, 7]])
    request: Any = SimpleNamespace(choice_count=2, model="demo")
    args = SimpleNamespace(enable_force_include_usage=False)
    state = SimpleNamespace(request_metadata=SimpleNamespace(request_id="chatcmpl-7"))
    raw: Any = SimpleNamespace(state=state, app=SimpleNamespace(state=SimpleNamespace(args=args)))
    return ChoiceEnds(run, request, raw, CHAT)


def chunk(created: int, **fields: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-7", "created": created, "choices": [], **fields}


def test_missing_ends_have_the_time_of_the_chunk_they_precede(ends: ChoiceEnds) -> None:
    made = ends.missing(chunk(17, usage={"prompt_tokens": 2}))
    assert [end["created"] for end in made] == [17, 17]


def test_missing_ends_have_the_time_of_the_chunks_before(ends: ChoiceEnds) -> None:
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}
    assert not ends.record(chunk(17, choices=[choice]))
    (end,) = ends.missing(None)
    assert (end["created"], end["choices"][0]["index"]) == (17, 1)


def test_missing_ends_of_an_empty_stream_have_one_time(
    ends: ChoiceEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", iter(range(100)).__next__)
    assert len({end["created"] for end in ends.missing(None)}) == 1
