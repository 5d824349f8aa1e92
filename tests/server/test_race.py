"""Best-of-n as a race, on the real engine."""

import threading
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from tests.waiting import until

from .served import Served
from .wire import PROMPT, complete, joined, text_of

RACE = {"method": "best_of_n", "n": 8, "race": {"delta": 0.02}}
FIELDS = {"max_tokens": 96, "seed": 5}


def test_race_draws_fewer_tokens_within_the_same_bound(client: OpenAI) -> None:
    raced = complete(client, RACE, **FIELDS).alignment
    full = complete(client, {"method": "best_of_n", "n": 8}, **FIELDS).alignment
    assert raced["candidate_tokens"] < full["candidate_tokens"]
    assert raced["kl"]["bound"] == pytest.approx(full["kl"]["bound"])


def test_race_with_a_delta_near_zero_keeps_all_candidates(client: OpenAI) -> None:
    policy = {**RACE, "race": {"delta": 1e-9, "every": 32}, "report": "trace"}
    report = complete(client, policy, **FIELDS).alignment
    ended = [c for d in report["trace"] for c in d["candidates"] if c["finish_reason"] is not None]
    assert len(ended) == 8
    assert report["score"] == max(candidate["score"] for candidate in ended)


@pytest.mark.parametrize("every", [5, 16, 64])
def test_race_that_gives_up_nothing_is_best_of_n_bit_for_bit(client: OpenAI, every: int) -> None:
    """Its candidates are drawn by the same engine requests, and only read in blocks."""
    policy = {**RACE, "race": {"delta": 1e-300, "every": every}}
    raced = complete(client, policy, **FIELDS)
    full = complete(client, {"method": "best_of_n", "n": 8}, **FIELDS)
    assert text_of(raced.choices[0]) == text_of(full.choices[0])
    assert raced.alignment["candidate_tokens"] == full.alignment["candidate_tokens"]
    assert raced.alignment["score"] == pytest.approx(full.alignment["score"])


def test_race_is_reproduced_by_its_seed_and_streams(client: OpenAI) -> None:
    answer = complete(client, RACE, **FIELDS)
    chunks = list(complete(client, RACE, stream=True, **FIELDS))
    assert joined(chunks) == text_of(answer.choices[0])
    assert chunks[-1].alignment["candidates"] == answer.alignment["candidates"]


def test_race_frees_the_rows_of_candidates_given_up(server: Served, client: OpenAI) -> None:
    """EOS is ignored, so that no candidate leaves the engine unless it is given up."""
    live = [8]
    ended = threading.Event()

    def read() -> None:
        policy = {**RACE, "report": "live"}
        try:
            fields = {"stream": True, "max_tokens": 1000, "seed": 5, "ignore_eos": True}
            for chunk in complete(client, policy, **fields):
                live.extend(
                    len(d["candidates"]) for d in getattr(chunk, "alignment_candidates", [])
                )
                if chunk.choices:  # text arrives once a single candidate is left
                    live.append(1)
        finally:
            ended.set()

    def freed() -> bool:
        most = live[-1]
        return 0 < server.metric("num_requests_running") <= most < 8

    server.wait_until_idle()
    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: freed() or ended.is_set(), "fewer rows than at the start")
    assert not ended.is_set()
    reader.join()
    assert live == sorted(live, reverse=True)


@pytest.mark.parametrize("at_once", [1, 3])
def test_race_with_a_price_draws_fewer_tokens_and_is_reproduced(
    client: OpenAI, at_once: int
) -> None:
    policy = {**RACE, "stop": {"gain_per_token": 0.0005}, "at_once": at_once}
    first, second = (complete(client, policy, **FIELDS) for _ in range(2))
    assert text_of(first.choices[0]) == text_of(second.choices[0])
    full = complete(client, {"method": "best_of_n", "n": 8}, **FIELDS).alignment
    assert first.alignment["candidate_tokens"] < full["candidate_tokens"]
    assert first.alignment["draws"]["allowed"] == 8


@pytest.mark.parametrize("threshold", [-0.9, 0.9])
def test_guard_judges_the_final_score_of_a_race(client: OpenAI, threshold: float) -> None:
    policy = {**RACE, "threshold": {"score": threshold}}
    report = complete(client, policy, **FIELDS).alignment
    assert report["decisions"] > 1
    assert report["accepted"] == (report["score"] >= threshold)


@pytest.mark.parametrize("reward", ["brevity", "sentiment_gold"])
def test_race_by_a_reward_without_figures_is_refused(http: httpx2.Client, reward: str) -> None:
    body: dict[str, Any] = {"model": "demo", "prompt": PROMPT, "max_tokens": 8}
    answer = http.post(
        "/v1/completions", json={**body, "alignment": {**RACE, "rewards": {reward: 1}}}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "alignment.race"
