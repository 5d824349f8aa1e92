"""Final chunks that are added to a stream where vLLM sends none."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from cdserve.api.streams import CHAT, ChoiceEnds


@pytest.fixture
def ends() -> ChoiceEnds:
    """Ends of a chat with two choices and a deadline."""
    context: Any = SimpleNamespace(policy=SimpleNamespace(deadline_ms=1), prompts=[[5, 7]])
    request: Any = SimpleNamespace(choice_count=2, model="demo")
    args = SimpleNamespace(enable_force_include_usage=False)
    state = SimpleNamespace(request_metadata=SimpleNamespace(request_id="chatcmpl-7"))
    raw: Any = SimpleNamespace(state=state, app=SimpleNamespace(state=SimpleNamespace(args=args)))
    return ChoiceEnds(context, request, raw, CHAT)


def chunk(created: int, **fields: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-7", "created": created, "choices": [], **fields}


def test_missing_final_chunks_have_the_time_of_the_next_chunk(ends: ChoiceEnds) -> None:
    chunks = ends.missing(chunk(17, usage={"prompt_tokens": 2}))
    assert [end["created"] for end in chunks] == [17, 17]


def test_missing_final_chunk_has_the_time_of_the_last_chunk(ends: ChoiceEnds) -> None:
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}
    assert not ends.record(chunk(17, choices=[choice]))
    (end,) = ends.missing(None)
    assert (end["created"], end["choices"][0]["index"]) == (17, 1)


def test_missing_final_chunks_of_an_empty_stream_share_one_time(
    ends: ChoiceEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", iter(range(100)).__next__)
    assert len({end["created"] for end in ends.missing(None)}) == 1
