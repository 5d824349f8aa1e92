"""``blockwise_cd`` with a gate: the draws, the report, the metrics and the errors."""

from typing import Any

import httpx2
import pytest
from openai import OpenAI

from cdserve import kl
from tests.server.wire import BLOCKWISE, PROMPT, Ask, chat, complete, joined, text_of
from tests.wire.test_metrics import changes, read

ALWAYS = {**BLOCKWISE, "gate": {"threshold": -1e6}, "report": "trace"}
"""Every scout is good enough."""
NEVER = {**BLOCKWISE, "gate": {"threshold": 1e6}, "report": "trace"}
ROUTES = pytest.mark.parametrize("ask", [complete, chat])


def drawn(answer: Any) -> list[int]:
    """Candidates of each decision."""
    return [len(decision["candidates"]) for decision in answer.alignment["trace"]]


@ROUTES
def test_good_scouts_are_the_only_candidates(client: OpenAI, ask: Ask) -> None:
    answer = ask(client, ALWAYS)
    report, decisions = answer.alignment, answer.alignment["decisions"]
    assert drawn(answer) == [2] * decisions
    assert report["candidates"] == 2 * decisions
    assert report["gate"] == {"searched": 0, "skipped": decisions}
    assert report["draws"] == {"made": 2 * decisions, "allowed": 4 * decisions}
    assert report["saved_tokens"] == report["candidate_tokens"]
    assert report["kl"]["bound"] == pytest.approx(decisions * kl.best_of_n_bound(4))
    assert report["kl"]["estimate"] == report["kl"]["bound"]


@ROUTES
def test_bad_scouts_are_followed_by_the_other_candidates(client: OpenAI, ask: Ask) -> None:
    answer = ask(client, NEVER)
    report, decisions = answer.alignment, answer.alignment["decisions"]
    assert drawn(answer) == [4] * decisions
    assert report["gate"] == {"searched": decisions, "skipped": 0}
    assert report["draws"] == {"made": 4 * decisions, "allowed": 4 * decisions}
    assert report["saved_tokens"] == 0


def test_scouts_of_the_first_block_are_the_first_candidates_without_a_gate(client: OpenAI) -> None:
    plain = complete(client, {**BLOCKWISE, "report": "trace"}).alignment["trace"][0]
    gated = complete(client, ALWAYS).alignment["trace"][0]
    texts = [candidate["text"] for candidate in plain["candidates"]]
    assert [candidate["text"] for candidate in gated["candidates"]] == texts[:2]


def test_gate_searches_blocks_whose_scouts_stay_below_the_threshold(client: OpenAI) -> None:
    scores = [
        max(candidate["score"] for candidate in decision["candidates"][:2])
        for seed in range(4)
        for decision in complete(client, NEVER, seed=seed).alignment["trace"]
    ]
    threshold = sorted(scores)[len(scores) // 2]
    outcomes = set()
    for seed in range(4):
        answer = complete(client, {**NEVER, "gate": {"threshold": threshold}}, seed=seed)
        for decision in answer.alignment["trace"]:
            scouts = [candidate["score"] for candidate in decision["candidates"][:2]]
            searched = len(decision["candidates"]) == 4
            assert searched == (max(scouts) < threshold)
            outcomes.add(searched)
    assert outcomes == {True, False}


def test_further_candidates_are_drawn_one_at_a_time_until_one_is_good_enough(
    client: OpenAI,
) -> None:
    for seed in range(4):
        scores = [
            candidate["score"]
            for candidate in complete(client, NEVER, seed=seed).alignment["trace"][0]["candidates"]
        ]
        gate = {"threshold": max(scores[:2]) + 1e-3, "at_once": 1}
        answer = complete(client, {**BLOCKWISE, "gate": gate, "report": "trace"}, seed=seed)
        for decision in answer.alignment["trace"]:
            *early, last = [candidate["score"] for candidate in decision["candidates"]]
            assert max(early) < gate["threshold"] or len(early) == 1
            assert last >= gate["threshold"] or len(early) in (1, 3)


def test_seed_fixes_a_gated_answer_and_its_stream(client: OpenAI) -> None:
    policy = {**BLOCKWISE, "gate": {"threshold": 0.1, "scouts": 1}}
    whole = complete(client, policy)
    assert text_of(complete(client, policy).choices[0]) == text_of(whole.choices[0])
    chunks = list(complete(client, policy, stream=True))
    assert joined(chunks) == text_of(whole.choices[0])
    (final,) = [chunk.alignment for chunk in chunks if hasattr(chunk, "alignment")]
    assert final["gate"] == whole.alignment["gate"]
    assert sum(final["gate"].values()) == final["decisions"]


def test_metrics_count_searched_and_skipped_decisions(client: OpenAI, http: httpx2.Client) -> None:
    before = read(http)
    reports = [complete(client, policy, n=2).alignment for policy in (ALWAYS, NEVER)]
    grown = changes(http, before)
    counts = grown["cdserve_gated_decisions_total"]
    for outcome in ("searched", "skipped"):
        total = sum(report["gate"][outcome] for report in reports)
        assert counts[f'method="blockwise_cd",outcome="{outcome}"'] == total > 0
    saved = sum(report["saved_tokens"] for report in reports)
    assert grown["cdserve_saved_tokens_total"] == {'method="blockwise_cd"': saved}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"gate": {}}, "alignment.gate.threshold"),
        ({"gate": 0.5}, "alignment.gate"),
        ({"gate": {"spread": 0.1}}, "alignment.gate"),
        ({"gate": {"threshold": 1e13}}, "alignment.gate.threshold"),
        ({"gate": {"threshold": 0, "scouts": 0}}, "alignment.gate.scouts"),
        ({"gate": {"threshold": 0, "scouts": 4}}, "alignment.gate.scouts"),
        ({"gate": {"threshold": 0, "at_once": 0}}, "alignment.gate.at_once"),
        ({"selection": {"softmax": 1.0}}, "alignment.gate"),
        ({"beam_width": 2}, "alignment.gate"),
        ({"kl_budget": 3.0}, "alignment.gate"),
    ],
)
def test_gate_that_cannot_be_applied_is_refused(
    http: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    policy = {**BLOCKWISE, "gate": {"threshold": 0.0}, **fields}
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 8, "alignment": policy}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)
