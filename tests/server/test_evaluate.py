"""`cdserve eval` against the served demo: figures against the records, resuming, refusals."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdserve import kl
from cdserve.cli import main
from cdserve.client.answers import Client
from cdserve.demo.tiny import PROMPTS_PATH
from cdserve.demo.tiny.reward import sentiment
from cdserve.evaluation.plots import PLOTS

from .served import Served

GOLD = "cdserve.demo.tiny.reward:sentiment_gold"
CHAT = [{"role": "user", "content": "Write a review."}]
POLICIES = (
    *("--policy", "best_of_n n=2,4"),
    *("--policy", "blockwise_cd k=2 m=32"),
    *("--policy", "tokenwise_cd beta=0.5"),
    *("--policy", "best-of-4"),
)
NAMES = {
    *("base", "best_of_n n=2", "best_of_n n=4", "blockwise_cd k=2 m=32", "tokenwise_cd beta=0.5"),
    "best-of-4",
}
Run = Callable[..., None]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = PROMPTS_PATH.read_text(encoding="utf-8").splitlines()[:5]
    path.write_text("\n".join([*lines, json.dumps({"messages": CHAT})]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(server: Served, prompts: Path) -> Run:
    """Runs the command with the flags common to all tests."""

    def evaluate(out: Path, *arguments: str) -> None:
        main(
            [
                *("eval", "--url", server.base_url, "--prompts", str(prompts)),
                *("--out", str(out), "--max-tokens", "64", *arguments),
            ]
        )

    return evaluate


@pytest.fixture(scope="module")
def out(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of the only complete run of these tests."""
    folder = tmp_path_factory.mktemp("evaluation")
    run(folder, *POLICIES, "--gold", GOLD)
    return folder


def results_of(out: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return results


def records_of(out: Path, policy: str) -> list[dict[str, Any]]:
    lines = (out / "records" / f"{policy}.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted(map(json.loads, lines), key=lambda record: record["prompt"])


def test_run_writes_results_report_plots_and_records(out: Path) -> None:
    assert {path.name for path in out.iterdir()} == {
        *("results.json", "report.md", "settings.json", "records"),
        *(plot.file for plot in PLOTS),
    }
    assert {path.name for path in (out / "records").iterdir()} == {f"{n}.jsonl" for n in NAMES}
    report = (out / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# Evaluation of `demo`\n\n6 prompts; scoring reward `sentiment`")
    assert all(f"| {name}" in report for name in NAMES)
    assert "cdserve eval --prompts" in report


def test_command_prints_its_tables_with_aligned_columns(
    run: Run, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(out, *POLICIES, "--gold", GOLD)  # complete already
    printed = capsys.readouterr().out
    rewards = printed.partition("\n\n## Cost")[0].splitlines()[2:]
    assert {line.split("|")[1].strip() for line in rewards[2:]} == NAMES
    assert len({len(line) for line in rewards}) == 1
    assert printed.endswith(f"Report: {out / 'report.md'}\n")


def test_reward_figures_equal_those_computed_from_records(out: Path) -> None:
    results = results_of(out)["policies"]
    assert set(results) == NAMES
    base = records_of(out, "base")
    for name, figures in results.items():
        records = records_of(out, name)
        assert [record["prompt"] for record in records] == list(range(6))
        assert [record["gold"] for record in records] == [sentiment(r["text"]) for r in records]
        for reward in ("reward", "gold"):
            pairs = [(a[reward], b[reward]) for a, b in zip(records, base, strict=True)]
            stats = figures[reward]
            assert stats["mean"]["mean"] == pytest.approx(statistics.fmean(a for a, _ in pairs))
            assert stats["mean"]["low"] < stats["mean"]["mean"] < stats["mean"]["high"]
            assert stats["gain"]["mean"] == pytest.approx(statistics.fmean(a - b for a, b in pairs))
            wins = sum((a > b) + (a == b) / 2 for a, b in pairs)
            assert stats["win_rate"]["mean"] == pytest.approx(wins / 6)
    # All are scored alike: what the server says of a finished answer is what it selected by.
    for record in records_of(out, "best_of_n n=4"):
        if record["finish_reason"] == "stop":
            assert record["reward"] == pytest.approx(record["report"]["score"], abs=1e-3)


def test_kl_and_cost_figures_equal_those_computed_from_reports(out: Path) -> None:
    results = results_of(out)["policies"]
    assert results["base"]["kl"]["estimate"]["mean"] == 0
    assert results["base"]["candidate_tokens"] == 1
    for n in (2, 4):
        divergence = results[f"best_of_n n={n}"]["kl"]
        assert divergence["bound"]["mean"] == pytest.approx(kl.best_of_n_bound(n))
        assert divergence["estimators"] == {"epsilon_n": 6}
    for name in NAMES - {"base"}:
        figures, records = results[name], records_of(out, name)
        tokens = sum(record["tokens"] for record in records)
        drawn = sum(record["report"]["candidate_tokens"] for record in records)
        assert figures["candidate_tokens"] == pytest.approx(drawn / tokens)
        assert figures["tokens"]["mean"] == pytest.approx(tokens / 6)
        if (spread := figures["kl"]["by_position"]) is not None:
            total = sum(bucket["tokens"] * bucket["estimate"] for bucket in spread)
            reported = sum(record["report"]["kl"]["estimate"] for record in records)
            assert total == pytest.approx(reported, abs=1e-6)
            assert sum(bucket["tokens"] for bucket in spread) == tokens
    assert results["tokenwise_cd beta=0.5"]["kl"]["even"]
    assert not results["blockwise_cd k=2 m=32"]["kl"]["even"]
    # A preset's report is the operator's, a summary here.
    assert results["best-of-4"]["kl"]["by_position"] is None


def test_latency_figures_are_per_block(out: Path) -> None:
    results = results_of(out)["policies"]
    for name in NAMES:
        latency = results[name]["latency"]
        assert 0 < latency["first_p50"] <= latency["first_p99"]
        assert latency["throughput"] >= latency["tokens_per_second"] * 0.99
        assert (latency["inter_p50"] is None) == (
            name in {*("best_of_n n=2", "best_of_n n=4")} | {"best-of-4"}
        )
    for record in records_of(out, "blockwise_cd k=2 m=32"):
        assert len(record["blocks"]) <= math.ceil(record["tokens"] / 32)


def test_best_of_n_curve_uses_all_draws_of_the_base(out: Path) -> None:
    results = results_of(out)
    assert results["sweeps"] == {"best_of_n": ["best_of_n n=2", "best_of_n n=4"]}
    curve = {point["n"]: point for point in results["best_of_n"]}
    # One draw of the base, and the candidates of best-of-2 and best-of-4.
    assert max(n for n, point in curve.items() if point["reward"] is not None) == 7
    pools = zip(
        *([record["pool"] for record in records_of(out, f"best_of_n n={n}")] for n in (2, 4)),
        [[record["reward"]] for record in records_of(out, "base")],
        strict=True,
    )
    drawn = [[*two, *four, *one] for two, four, one in pools]
    assert curve[1]["reward"] == pytest.approx(statistics.fmean(map(statistics.fmean, drawn)))
    assert curve[7]["reward"] == pytest.approx(statistics.fmean(map(max, drawn)))


def test_interrupted_run_resumes_and_refuses_changed_settings(
    out: Path, run: Run, tmp_path: Path
) -> None:
    before = {name: records_of(out, name) for name in NAMES}
    (tmp_path / "records").mkdir()
    for path in (out / "records").iterdir():
        (tmp_path / "records" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "settings.json").write_bytes((out / "settings.json").read_bytes())
    base = tmp_path / "records" / "base.jsonl"
    base.write_text("".join(base.read_text().splitlines(keepends=True)[:4]))
    torn = tmp_path / "records" / "blockwise_cd k=2 m=32.jsonl"
    torn.write_bytes(torn.read_bytes()[:-20])
    kept = {name: {r["id"] for r in _whole(tmp_path, name)} for name in NAMES}

    # The order of flags does not matter, and a policy may come to it.
    run(tmp_path, "--gold", GOLD, *POLICIES, "--policy", "none")
    for name in NAMES:
        for one, other in zip(before[name], records_of(tmp_path, name), strict=True):
            assert (one["began"] == other["began"]) == (one["id"] in kept[name])
            assert (one["seed"], one["text"]) == (other["seed"], other["text"])
    results = results_of(tmp_path)["policies"]
    assert results["none"]["candidate_tokens"] == 1
    assert results["base"]["gold"]["mean"] == results_of(out)["policies"]["base"]["gold"]["mean"]

    with pytest.raises(SystemExit, match="was made with max_tokens 64, not 32; choose another"):
        run(tmp_path, "--gold", GOLD, *POLICIES, "--max-tokens", "32")
    with pytest.raises(SystemExit, match=r"was made with gold 'cdserve.*, not None"):
        run(tmp_path, *POLICIES)


def _whole(out: Path, policy: str) -> list[dict[str, Any]]:
    lines = (out / "records" / f"{policy}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no policies to compare; add --policy or --policies"),
        (("--policy", "best-of-9"), "the server has no preset 'best-of-9'; it has .*best-of-4"),
        (("--policy", "best n=4"), "the server has no method 'best'; it has none, "),
        (("--policy", "best_of_n n=17"), "policy 'best_of_n n=17', prompt 1: the server answers"),
        (("--policy", '{"method": "best_of_n", "k": 1}'), "alignment.n"),
        (("--policy", "safe", "--policy", "safe"), "two policies are named 'safe'"),
        (("--policy", "safe", "--reward", "x"), "is 'x'; the server has brevity, .*slow"),
        (("--policy", "safe", "--gold", "x"), "--gold is 'x'; the server has brevity, "),
        (("--policy", "safe", "--gold", "sentiment"), "the scoring reward itself"),
        (("--policy", "safe", "--gold", "no.such:thing"), "--gold: no.such:thing cannot be impo"),
        (("--policy", "safe", "--gold", "a b:c"), "must be NAME or MODULE:FUNCTION"),
        (("--policy", "safe", "--gold", "operator:truediv"), "--gold operator:truediv failed on"),
        (("--policy", "safe", "--gold", "tests.server.faulty:nan"), "it must be finite"),
        (("--policy", "safe", "--draws", "0"), "--draws is 0; it must be at least 1"),
        (("--policy", "safe", "--top-p", "0"), "--top-p is 0.0; it must be above 0"),
        (("--policy", "safe", "--dtype", "auto"), "vLLM's flags are not accepted"),
        (("--policy", "safe", "--model", "other"), "the server answers: .*other"),
    ],
)
def test_invalid_arguments_are_refused(
    run: Run, arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=words) as caught:
        run(tmp_path / "out", *arguments)
    assert str(caught.value).startswith("cdserve: ")
    assert not (tmp_path / "out" / "settings.json").exists()


def test_policy_named_base_is_refused(run: Run, tmp_path: Path) -> None:
    (path := tmp_path / "policies.yaml").write_text("base: safe")
    with pytest.raises(SystemExit, match="the name 'base' is reserved"):
        run(tmp_path / "out", "--policies", str(path))


def test_url_without_a_server_is_refused(prompts: Path, tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:9", "http://127.0.0.1:x"):
        with pytest.raises(SystemExit, match="no healthy server answers there"):
            main(
                [
                    *("eval", "--url", url, "--prompts", str(prompts)),
                    *("--out", str(tmp_path), "--policy", "safe"),
                ]
            )


async def test_prompt_text_renders_a_chat_as_rewards_receive_it(server: Served) -> None:
    async with Client(server.base_url) as client:
        assert await client.prompt_text("as it is") == "as it is"
        rendered = "<|begin|><|user|>Write a review.<|end|><|assistant|>"
        assert await client.prompt_text(CHAT) == rendered
