"""The load benchmark reads its tools' own figures, and shows all of them."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from load_report import markdown, page
from load_tools import Load, Slo, guidellm_figures, vllm_bench, vllm_bench_figures
from load_usage import Usage

from cdserve.demo.tiny import MODEL_DIR
from tests.server.served import Served

RECORDED = Path(__file__).parent / "recorded"
READ = {"vllm_bench": vllm_bench_figures, "guidellm": guidellm_figures}


def recorded(tool: str) -> dict[str, Any]:
    """What the tool wrote once, for requests by blockwise CD; only the parts that are read."""
    made: dict[str, Any] = json.loads((RECORDED / f"{tool}.json").read_text())
    return made


@pytest.mark.parametrize("tool", READ)
def test_figures_of_a_load_generator_are_consistent(tool: str) -> None:
    figures = READ[tool](recorded(tool))
    assert figures["completed"] == 16
    assert figures["failed"] == 0
    assert figures["requests_per_s"] * figures["seconds"] == pytest.approx(16)
    assert 0 <= figures["goodput_per_s"] <= figures["requests_per_s"]
    for p in ("p50", "p99"):
        assert 0 < figures["first_block_ms"][p] < figures["end_to_end_ms"][p]
        assert figures["end_to_end_ms"][p] < 1000 * figures["seconds"]
    assert figures["end_to_end_ms"]["p50"] <= figures["end_to_end_ms"]["p99"]


def test_single_chunk_answers_have_no_inter_block_time() -> None:
    result = recorded("vllm_bench")
    assert vllm_bench_figures(result)["between_blocks_ms"]["p50"] > 0
    assert vllm_bench_figures({**result, "itls": [[]] * 16})["between_blocks_ms"] is None


def test_load_with_only_failed_requests_is_an_error() -> None:
    failed = {**recorded("vllm_bench"), "completed": 0, "errors": ["Service Unavailable"]}
    with pytest.raises(RuntimeError, match="Service Unavailable"):
        vllm_bench_figures(failed)
    report = recorded("guidellm")
    report["benchmarks"][0]["metrics"]["request_totals"]["successful"] = 0
    with pytest.raises(RuntimeError, match="no request succeeded"):
        guidellm_figures(report)


def rows() -> list[dict[str, Any]]:
    """One of each table, and a second model's."""
    figures = vllm_bench_figures(recorded("vllm_bench"))
    used = {"candidate_tokens_per_s": 1234.5, "engine_cores": 1.5, "front_end_cores": 0.25}
    of_all = {"prompt_tokens": 32, "output_tokens": 64, "requests": 16, **figures, **used}
    of_all |= {"method": "blockwise_cd", "tool": "vllm bench serve", "model": "demo"}
    closed = {**of_all, "table": "closed", "concurrency": 8}
    return [
        closed,
        {**closed, "model": "100m", "between_blocks_ms": None, "failed": 3},
        {**of_all, "table": "poisson", "rate": 2.5, "share": 0.5},
        {**closed, "table": "lengths"},
        {**closed, "table": "tools"},
    ]


def test_every_row_appears_in_its_table() -> None:
    tables = markdown(rows()).split("## ")[1:]
    assert [table.partition("\n")[0] for table in tables] == [
        "Closed loop, demo",
        "Closed loop, 100m",
        "Poisson arrivals, demo",
        "Prompts and answers of several lengths, demo",
        "The same load by two tools, demo",
    ]
    for table in tables:
        lines = [line for line in table.splitlines() if line.startswith("|")]
        header, cells = (line.strip("| ").split(" | ") for line in (lines[0], lines[2]))
        shown = dict(zip(header, cells, strict=True))
        assert (shown["method"], shown["engine"], shown["front end"]) == (
            "blockwise_cd",
            "1.50",
            "0.25",
        )
        assert shown["candidate tokens/s"] == "1234"
        if "100m" in table:
            assert shown["requests/s"].endswith("(3 failed)")
            assert shown["between blocks, s"] == ""


def test_page_has_the_plot_and_a_link_to_the_rows(tmp_path: Path) -> None:
    made = {
        "command": "python benchmarks/load.py",
        "date": "2026-01-02",
        "machine": "a machine",
        "guidellm": "0",
        "prompt_tokens": 32,
        "slo": {"first_block_ms": 2000.0, "end_to_end_ms": 5000.0},
        "methods": {"plain": None, "blockwise_cd": {"method": "blockwise_cd", "k": 4, "m": 16}},
        "rows": rows(),
    }
    (tmp_path / "docs").mkdir()
    page(made, tmp_path / "results" / "load.json", tmp_path / "docs" / "load.md")
    text = (tmp_path / "docs" / "load.md").read_text()
    assert "(../results/load.json)" in text
    assert markdown(rows()) in text
    assert (tmp_path / "docs" / "load.svg").read_text().count("<svg") == 1


def test_vllm_bench_requests_carry_the_policy(server: Served) -> None:
    body = {"temperature": 1.0, "alignment": {"method": "tokenwise_cd", "beta": 0.5}}
    sizes = {"requests": 4, "prompt_tokens": 12, "output_tokens": 8, "concurrency": 2}
    load = Load(model="demo", body=body, **sizes)
    pid = psutil.Process(server.engines()[0]).ppid()
    before = Usage.of(server.base_url, pid)
    figures = vllm_bench(load, server.base_url, MODEL_DIR, Slo(60_000, 60_000))
    used = Usage.of(server.base_url, pid).since(before)
    assert figures["completed"] == 4
    assert figures["goodput_per_s"] == figures["requests_per_s"]
    assert used.candidate_tokens == 4 * 8
    assert used.engine_s > 0
    assert used.front_end_s > 0
