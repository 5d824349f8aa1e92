"""The requests of a draw begin in the same step of the engine."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.request import RequestStatus

from cdserve.worker import draws
from cdserve.worker.draws import WAIT, PendingDraws
from cdserve.worker.request import DrawPlace, WorkerRequest
from cdserve.worker.scheduler import TailScheduler


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(draws, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_request_waits_until_the_last_of_its_draw_has_arrived(clock: SimpleNamespace) -> None:
    waiting = PendingDraws()
    for preceding in (0, 1):
        waiting.add(DrawPlace("a", preceding, 3))
        assert waiting.incomplete(DrawPlace("a", 0, 3))
    waiting.add(DrawPlace("a", 2, 3))
    assert not waiting.incomplete(DrawPlace("a", 0, 3))
    assert not waiting


def test_draws_do_not_wait_for_each_other(clock: SimpleNamespace) -> None:
    waiting = PendingDraws()
    waiting.add(DrawPlace("a", 0, 2))
    waiting.add(DrawPlace("b", 0, 2))
    waiting.add(DrawPlace("b", 1, 2))
    assert waiting.incomplete(DrawPlace("a", 0, 2))
    assert not waiting.incomplete(DrawPlace("b", 0, 2))


def test_request_stops_waiting_for_one_that_never_arrives(clock: SimpleNamespace) -> None:
    waiting = PendingDraws()
    waiting.add(DrawPlace("a", 0, 3))
    clock.now = WAIT / 2
    waiting.add(DrawPlace("a", 1, 3))
    clock.now = WAIT
    assert not waiting.incomplete(DrawPlace("a", 0, 3))
    waiting.add(DrawPlace("b", 0, 2))
    waiting.add(DrawPlace("b", 1, 2))
    assert not waiting  # nothing is kept of the incomplete draw


def test_late_request_of_a_draw_does_not_wait_again(clock: SimpleNamespace) -> None:
    waiting = PendingDraws()
    waiting.add(DrawPlace("a", 0, 3))
    clock.now = WAIT
    waiting.add(DrawPlace("b", 0, 2))
    waiting.add(DrawPlace("a", 1, 3))
    assert waiting.incomplete(DrawPlace("b", 0, 2))
    assert not waiting.incomplete(DrawPlace("a", 1, 3))


def test_scheduler_skips_requests_of_an_incomplete_draw(clock: SimpleNamespace) -> None:
    scheduler: Any = TailScheduler.__new__(TailScheduler)
    scheduler._draws = PendingDraws()
    scheduler._draws.add(DrawPlace("a", 0, 2))
    assert not scheduler._handle_blocked_waiting_request(_request(DrawPlace("a", 0, 2)))
    assert scheduler._handle_blocked_waiting_request(_request(None))
    scheduler._draws.add(DrawPlace("a", 1, 2))
    assert scheduler._handle_blocked_waiting_request(_request(DrawPlace("a", 0, 2)))


def _request(place: DrawPlace | None) -> SimpleNamespace:
    extra_args = WorkerRequest(place=place).added_to(None)
    params = SimpleNamespace(extra_args=extra_args)
    return SimpleNamespace(status=RequestStatus.WAITING, sampling_params=params)
