"""Best-of-n as a race with ``stop`` and ``at_once``: the answer, the report and the metrics."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from cdserve import kl
from tests.server.wire import PROMPT, complete, joined, text_of
from tests.wire.test_metrics import changes, read

RACE = {"method": "best_of_n", "n": 8, "race": {"delta": 0.02, "every": 4}}
GAIN = {"stop": {"gain_per_token": 0.002}, "at_once": 2}
COMBINED = pytest.mark.parametrize(
    "fields",
    [GAIN, {"stop": {"threshold": 0.1}, "at_once": 1}, {"at_once": 3}, {**GAIN, "at_once": 8}],
)


@COMBINED
def test_race_answers_alike_whatever_else_runs(client: OpenAI, fields: dict[str, Any]) -> None:
    def answer(seed: int) -> tuple[str, Any]:
        answered = complete(client, {**RACE, **fields}, seed=seed, max_tokens=32)
        return text_of(answered.choices[0]), answered.alignment

    alone = [answer(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(answer, range(6)))
    for (text, report), (text_together, report_together) in zip(alone, together, strict=True):
        assert text == text_together
        assert report["candidate_tokens"] == report_together["candidate_tokens"]
        assert report["draws"] == report_together["draws"]


@COMBINED
def test_report_counts_all_tokens_of_a_race(
    client: OpenAI, http: httpx2.Client, fields: dict[str, Any]
) -> None:
    before = read(http)
    policy = {**RACE, **fields, "report": "trace"}
    report = complete(client, policy, seed=3, max_tokens=32).alignment
    drawn = [candidate for made in report["trace"] for candidate in made["candidates"]]
    assert report["candidates"] == len(drawn)
    assert report["candidate_tokens"] == sum(candidate["tokens"] for candidate in drawn)
    assert 1 <= report["draws"]["made"] <= report["draws"]["allowed"] == 8
    assert report["kl"]["bound"] == pytest.approx(kl.best_of_n_bound(8))
    assert report["kl"]["estimator"] == "bound"
    grown, method = changes(http, before), 'method="best_of_n"'
    assert grown["cdserve_draws_made_total"] == {method: report["draws"]["made"]}
    assert grown["cdserve_saved_tokens_total"].get(method, 0) == report["saved_tokens"]


@COMBINED
def test_streamed_race_is_the_whole_answer(client: OpenAI, fields: dict[str, Any]) -> None:
    sent: dict[str, Any] = {"seed": 7, "max_tokens": 32}
    answer = complete(client, {**RACE, **fields}, **sent)
    chunks = list(complete(client, {**RACE, **fields}, stream=True, **sent))
    assert joined(chunks) == text_of(answer.choices[0])
    assert chunks[-1].alignment["draws"] == answer.alignment["draws"]


@pytest.mark.parametrize("fields", [{}, GAIN])
def test_race_without_a_seed_grows_on_a_full_server(
    client: OpenAI, http: httpx2.Client, fields: dict[str, Any]
) -> None:
    """The requests have more candidates than there are slots."""
    policy = {"method": "best_of_n", "n": 16, "race": {"delta": 0.02, "every": 4}, **fields}
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(complete, client, policy, max_tokens=32) for _ in range(16)]
    for answer in asked:
        draws = answer.result().alignment["draws"]
        assert 1 <= draws["made"] <= draws["allowed"] == 16
    samples = read(http)
    assert samples["cdserve_running_candidates", ""] == 0
    assert samples["cdserve_waiting_candidates", ""] == 0


@pytest.mark.parametrize(
    "excluded",
    [{"kl_budget": 0.5}, {"threshold": {"score": 0.0, "on_reject": "refuse"}}],
)
def test_race_with_stop_refuses_fields_of_other_searches(
    http: httpx2.Client, excluded: dict[str, Any]
) -> None:
    policy = {**RACE, **GAIN, **excluded}
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 8, "alignment": policy}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "alignment.race"
