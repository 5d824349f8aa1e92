"""Figures of the benchmark at equal reward."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import equal_reward
from benchmarks.peers.equal_reward import PEERS, REFERENCE, for_page, markdown, quartiles, summary
from benchmarks.peers.report import RESULTS, page


def rounds(*elapsed: float, gold: float = 0.5) -> dict[str, Any]:
    run = {"latencies": [0.1, 0.2], "tokens": 40.0, "gold": [gold, gold + 0.1]}
    return {"8": [{**run, "elapsed": seconds} for seconds in elapsed]}


def peers() -> dict[str, Any]:
    """The saved figures of all peers."""
    saved: dict[str, Any] = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))
    return saved


@pytest.fixture
def rows() -> dict[str, Any]:
    runs = {peer: rounds(4.0, 4.0) for peer in PEERS}
    runs["race"] = rounds(2.0, 1.0, gold=0.4)
    return summary(runs)


def test_ratios_are_medians_of_the_rounds_with_quartiles(rows: dict[str, Any]) -> None:
    rates = rows["race"]["rates"]["8"]
    assert rates["requests_per_s"] == [1.5, 1.25, 1.75]
    assert rates["ratios"] == {peer: [3.0, 2.5, 3.5] for peer in PEERS}
    assert rates["latency_p50"] == pytest.approx(0.15)
    assert rates["latency_p99"] == pytest.approx(0.2)
    assert not rows[REFERENCE]["rates"]["8"]["ratios"]


def test_rewards_are_compared_prompt_by_prompt(rows: dict[str, Any]) -> None:
    difference, interval = rows["race"]["against_reference"]
    assert difference == pytest.approx(-0.1)
    assert interval == pytest.approx(0.0, abs=1e-9)
    assert rows["race"]["tokens"] == 20.0
    assert rows["race"]["answers"] == 4


def test_quartiles_of_one_round_are_its_value() -> None:
    assert quartiles([2.0]) == [2.0, 2.0, 2.0]


def test_table_has_a_line_per_row_and_concurrency(rows: dict[str, Any]) -> None:
    text = markdown(rows)
    assert "8 requests at once" in text
    assert text.count("**cdserve** race") == 2
    assert "3.00 (2.50-3.50)" in text


def test_page_of_the_peers_has_a_place_for_figures_not_measured_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: dict[str, Any]
) -> None:
    monkeypatch.setattr(equal_reward, "RESULTS", tmp_path)
    assert "Not measured yet." in page(peers(), for_page())
    saved = {"command": "python", "machine": "two cores", "rounds": 2, "rows": rows}
    (tmp_path / "equal_reward.json").write_text(json.dumps(saved))
    text = page(peers(), for_page())
    assert "on two cores; 2 rounds." in text
    assert "8 requests at once" in text
