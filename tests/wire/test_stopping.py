"""Best-of-n with ``stop`` and ``at_once``: the answer, the report and the metrics."""

from typing import Any

import httpx2
import pytest
from openai import OpenAI

from cdserve import kl
from tests.server.served import Served
from tests.server.wire import BEST_OF_N, PROMPT, Ask, chat, complete
from tests.wire.test_metrics import changes, read

BEST_OF_8 = {**BEST_OF_N, "n": 8}
TRACE = {"report": "trace"}
CLOSE = 1e-5
"""Difference between the scores of a text that were computed in different batches, at most."""
ROUTES = pytest.mark.parametrize("ask", [complete, chat])


def traced(answer: Any) -> list[dict[str, Any]]:
    """The candidates of the only decision."""
    (decision,) = answer.alignment["trace"]
    candidates: list[dict[str, Any]] = decision["candidates"]
    return candidates


def text_of(answer: Any) -> str:
    """Text of the first choice."""
    (choice,) = answer.choices
    return choice.text if hasattr(choice, "text") else choice.message.content


@pytest.mark.parametrize("at_once", [None, 1, 3])
@ROUTES
def test_stop_that_never_triggers_answers_as_plain_best_of_n(
    client: OpenAI, ask: Ask, at_once: int | None
) -> None:
    for seed in range(4):
        plain = ask(client, {**BEST_OF_8, **TRACE}, seed=seed)
        dial = {} if at_once is None else {"at_once": at_once}
        policy = {**BEST_OF_8, **TRACE, "stop": {"gain_per_token": 0}, **dial}
        stopped = ask(client, policy, seed=seed)
        assert text_of(stopped) == text_of(plain)
        assert stopped.usage == plain.usage
        for drawn, expected in zip(traced(stopped), traced(plain), strict=True):
            rewards = pytest.approx(expected["rewards"], abs=CLOSE)
            score = pytest.approx(expected["score"], abs=CLOSE)
            assert drawn == {**expected, "score": score, "rewards": rewards}
        assert stopped.alignment["draws"] == {"made": 8, "allowed": 8}
        assert stopped.alignment["saved_tokens"] == 0
        assert "draws" not in plain.alignment


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_threshold_returns_the_first_candidate_that_passes(client: OpenAI, at_once: int) -> None:
    made = []
    for seed in range(8):
        plain = complete(client, {**BEST_OF_8, **TRACE}, seed=seed)
        scores = [candidate["score"] for candidate in traced(plain)]
        threshold = sum(sorted(scores)[4:6]) / 2
        first = next(i for i, score in enumerate(scores) if score >= threshold)
        policy = {**BEST_OF_8, **TRACE, "stop": {"threshold": threshold}, "at_once": at_once}
        answer = complete(client, policy, seed=seed)
        report, drawn = answer.alignment, [candidate["score"] for candidate in traced(answer)]
        assert drawn == pytest.approx(scores[: first + 1], abs=CLOSE)
        assert report["score"] == pytest.approx(scores[first], abs=CLOSE)
        assert report["kl"]["bound"] == kl.best_of_n_bound(8)
        assert report["draws"]["allowed"] == 8
        assert report["draws"]["made"] == report["candidates"]
        assert first < report["draws"]["made"] <= 8
        made.append(report["draws"]["made"] - first - 1)
    assert (at_once == 1) == (not any(made))


def test_gain_stop_saves_tokens_and_metrics_count_them(client: OpenAI, http: httpx2.Client) -> None:
    before = read(http)
    policy = {**BEST_OF_8, "stop": {"gain_per_token": 0.05}, "at_once": 2}
    reports = [complete(client, policy, seed=seed).alignment for seed in range(4)]
    saved = sum(report["saved_tokens"] for report in reports)
    assert saved > 0
    grown = changes(http, before)
    of = 'method="best_of_n"'
    for name in ("made", "allowed"):
        total = sum(report["draws"][name] for report in reports)
        assert grown[f"cdserve_draws_{name}_total"] == {of: total}
    assert grown["cdserve_saved_tokens_total"] == {of: saved}
    tokens = sum(report["candidate_tokens"] for report in reports)
    assert grown["cdserve_candidate_tokens_total"] == {of: tokens}


def test_reports_of_several_choices_add_up(client: OpenAI) -> None:
    policy = {**BEST_OF_8, "stop": {"threshold": -1e6}, "at_once": 1}
    answer = complete(client, policy, n=3)
    assert answer.alignment["draws"] == {"made": 3, "allowed": 24}
    assert len(answer.alignment["choices"]) == 3


@pytest.mark.parametrize("report", ["summary", "live"])
@ROUTES
def test_stream_of_a_stopped_search_has_the_answer_and_the_report(
    client: OpenAI, ask: Ask, report: str
) -> None:
    policy = {**BEST_OF_8, "stop": {"threshold": -1e6}, "report": report}
    whole = ask(client, policy)
    chunks = list(ask(client, policy, stream=True))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    pieces = [c.text if hasattr(c, "text") else c.delta.content or "" for c in choices]
    assert "".join(pieces) == text_of(whole)
    (final,) = [chunk.alignment for chunk in chunks if hasattr(chunk, "alignment")]
    assert final["score"] == pytest.approx(whole.alignment["score"], abs=CLOSE)
    assert final["draws"]["allowed"] == 8


def test_abandoned_candidates_leave_nothing_in_the_engine(
    server: Served, fake: bool, client: OpenAI, http: httpx2.Client
) -> None:
    for seed in range(4):
        complete(client, {**BEST_OF_8, "stop": {"threshold": -1e6}}, seed=seed, max_tokens=200)
    samples = read(http)
    assert samples["cdserve_running_candidates", ""] == 0
    assert samples["cdserve_waiting_candidates", ""] == 0
    if not fake:  # the fake engine counts its requests only while there are some
        server.wait_until_idle()


@pytest.mark.parametrize("selection", [{"softmax": 1.0}, {"pessimistic": 1.0}])
def test_stop_with_another_selection_is_refused(http: httpx2.Client, selection: Any) -> None:
    policy = {**BEST_OF_8, "stop": {"threshold": 1.0}, "selection": selection}
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 8, "alignment": policy}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "alignment.stop"
