"""The ends that a stream is given where vLLM sends none."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from cdserve.api.streams import CHAT, Ends


@pytest.fixture
def ends() -> Ends:
    """Of a chat with two choices under a deadline."""
    run: Any = SimpleNamespace(policy=SimpleNamespace(deadline_ms=1), prompts=[[5, 7]])
    request: Any = SimpleNamespace(choices=2, model="demo")
    args = SimpleNamespace(enable_force_include_usage=False)
    state = SimpleNamespace(request_metadata=SimpleNamespace(request_id="chatcmpl-7"))
    raw: Any = SimpleNamespace(state=state, app=SimpleNamespace(state=SimpleNamespace(args=args)))
    return Ends(run, request, raw, CHAT)


def chunk(created: int, **fields: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-7", "created": created, "choices": [], **fields}


def test_missing_ends_have_the_time_of_the_chunk_they_precede(ends: Ends) -> None:
    made = ends.missing(chunk(17, usage={"prompt_tokens": 2}))
    assert [end["created"] for end in made] == [17, 17]


def test_missing_ends_have_the_time_of_the_chunks_before(ends: Ends) -> None:
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}
    assert not ends.last(chunk(17, choices=[choice]))
    (end,) = ends.missing(None)
    assert (end["created"], end["choices"][0]["index"]) == (17, 1)


def test_missing_ends_of_an_empty_stream_have_one_time(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", iter(range(100)).__next__)
    assert len({end["created"] for end in ends.missing(None)}) == 1
