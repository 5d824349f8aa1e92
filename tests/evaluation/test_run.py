"""Requests, records and resumed runs of an evaluation, with a fake client."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cdserve.client.answers import Answer, Sampling
from cdserve.client.policies import read_policies
from cdserve.errors import ConfigError
from cdserve.evaluation import run
from cdserve.evaluation.job import EvaluationJob
from cdserve.evaluation.results import Results
from cdserve.evaluation.settings import journal_of
from tests.waiting import turns

PROMPTS = 6


class Fake:
    """A client whose answers contain their seeds; request ``fails_at`` fails or calls ``stop``."""

    model = "fake"

    def __init__(self, fails_at: int | None = None) -> None:
        self.asked: list[tuple[Any, Any, int]] = []
        self.stop: Callable[[], object] | None = None
        self._fails_at = fails_at

    async def describe(self) -> dict[str, Any]:
        rewards = {"good": {"default": True}, "gold": {"default": False}}
        return {
            "rewards": rewards,
            "presets": {"house": {"method": "best_of_n", "n": 8}},
            "methods": {"none": {}, "best_of_n": {}},
        }

    async def answer(self, prompt: Any, alignment: Any, sampling: Sampling, seed: int) -> Answer:
        if len(self.asked) == self._fails_at and self.stop is None:
            raise ConfigError("the server answers: no")
        if len(self.asked) == self._fails_at and self.stop is not None:
            self.stop()
        self.asked.append((prompt, alignment, seed))
        await turns(1)
        report = None
        if alignment != {"method": "none"}:
            nats = {"bound": 0.5, "estimate": 0.4}
            report = {
                **{"decisions": 1, "candidates": 2, "candidate_tokens": 8, "ties": 0},
                "kl": {**nats, "estimator": "epsilon_n"},
            }
        return Answer(
            text=f"answer {seed}",
            finish_reason="stop",
            tokens=4,
            report=report,
            seconds=0.1,
            blocks=[0.1],
        )

    async def score(
        self, prompt: Any, responses: Sequence[str], rewards: Sequence[str]
    ) -> list[Mapping[str, float]]:
        return [{name: float(len(name) + len(text)) for name in rewards} for text in responses]


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "draw", lambda results, folder: None)


def job(folder: Path, *policies: str, **changes: Any) -> EvaluationJob:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"p{i}"}) + "\n" for i in range(PROMPTS)))
    fields = {
        **{"prompts": prompts, "out": folder / "out", "policies": read_policies(None, policies)},
        **{"reward": None, "gold": "gold", "sampling": Sampling(max_tokens=8), "limit": None},
        **{"draws": 2, "concurrency": 3, "seed": 0, "command": "cdserve eval"},
    }
    return EvaluationJob(**(fields | changes))


def kept(folder: Path, policy: str) -> list[dict[str, Any]]:
    path = journal_of(folder / "out", policy)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def evaluate(of: EvaluationJob, client: Any) -> Results:
    return await run.evaluate(of, client)


async def test_every_answer_is_requested_once(tmp_path: Path) -> None:
    client = Fake()
    results = await evaluate(job(tmp_path, "best_of_n n=2", "house"), client)
    assert list(results.policies) == ["base", "best_of_n n=2", "house"]
    assert results.prompts == PROMPTS
    assert results.draws == 2
    assert len(client.asked) == 3 * (1 + 2 * PROMPTS)  # the first of each policy is a trial
    assert len({seed for _, _, seed in client.asked}) == 3 * 2 * PROMPTS
    sent = [alignment for _, alignment, _ in client.asked[:3]]
    assert sent == [
        {"method": "none"},
        {"method": "best_of_n", "n": 2, "report": "trace"},
        "house",
    ]
    assert results.settings["policies"]["house"] == {
        "preset": "house",
        "method": "best_of_n",
        "n": 8,
    }
    again = Fake()
    assert await evaluate(job(tmp_path, "best_of_n n=2", "house"), again) == results
    assert again.asked == []


@pytest.mark.parametrize("at", [3, 8, 20])
@pytest.mark.parametrize("stopped", [True, False])
async def test_interrupted_run_keeps_answers_and_resumes(
    at: int, stopped: bool, tmp_path: Path
) -> None:
    names, policies = ("base", "best_of_n n=2"), ("best_of_n n=2",)
    first = Fake(fails_at=at)
    task = asyncio.create_task(evaluate(job(tmp_path, *policies), first))
    first.stop = task.cancel if stopped else None  # as Ctrl-C does
    with pytest.raises(asyncio.CancelledError if stopped else ConfigError):
        await task
    before = {name: kept(tmp_path, name) for name in names}
    # Two trials, and of those answered at most one a worker was not scored yet.
    assert at - 2 - 3 <= sum(map(len, before.values())) <= at - 2
    client = Fake()
    results = await evaluate(job(tmp_path, *policies), client)
    lacking = [name for name in names if len(before[name]) < 2 * PROMPTS]
    missing = sum(2 * PROMPTS - len(before[name]) for name in names)
    assert len(client.asked) == len(lacking) + missing
    for name in names:
        assert kept(tmp_path, name)[: len(before[name])] == before[name]
        assert results.policies[name].answers == 2 * PROMPTS
    whole = await evaluate(job(tmp_path, *policies, out=tmp_path / "whole"), Fake())
    assert whole.policies["base"].reward == results.policies["base"].reward


async def test_refused_policy_writes_no_settings_or_records(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy 'base', prompt 1: the server answers: no"):
        await evaluate(job(tmp_path, "best_of_n n=2"), Fake(fails_at=0))
    assert not (tmp_path / "out" / "settings.json").exists()
    assert kept(tmp_path, "base") == []


async def test_resumed_run_may_add_answers_but_not_change_settings(tmp_path: Path) -> None:
    await evaluate(job(tmp_path, "best_of_n n=2", draws=1, limit=3), Fake())
    client = Fake()
    results = await evaluate(job(tmp_path, "best_of_n n=2,4"), client)
    assert results.policies["best_of_n n=4"].answers == 2 * PROMPTS
    assert len(client.asked) == 3 + 3 * 2 * PROMPTS - 2 * 3
    less = await evaluate(job(tmp_path, "best_of_n n=4", limit=2), Fake(fails_at=0))
    assert less.policies["best_of_n n=4"].answers == 4
    for change, words in (
        ({"seed": 1}, "made with seed 0, not 1"),
        ({"concurrency": 4}, "made with concurrency 3, not 4"),
        ({"gold": None}, "made with gold 'gold', not None"),
        ({"reward": "gold", "gold": "good"}, "made with reward 'good', not 'gold'"),
        ({"sampling": Sampling(max_tokens=9)}, "made with max_tokens 8, not 9"),
    ):
        with pytest.raises(ConfigError, match=words):
            await evaluate(job(tmp_path, "best_of_n n=2", **change), Fake())
    swapped = ('{"method": "best_of_n", "n": 2}',)
    assert read_policies(None, swapped)[0].name == "best_of_n n=2"
    await evaluate(job(tmp_path, *swapped), Fake(fails_at=0))  # the same policy by other words
    (tmp_path / "other.yaml").write_text("best_of_n n=2: {method: best_of_n, n: 3}")
    other = read_policies(tmp_path / "other.yaml", [])
    with pytest.raises(ConfigError, match=r"made with policy 'best_of_n n=2' .*'n': 2.*'n': 3"):
        await evaluate(job(tmp_path, policies=other), Fake())


def test_journal_file_names_are_unique_and_safe() -> None:
    names = ["a/b", "a%2Fb", "..", "β", "x" * 300, "x" * 299 + "y", 'n {"a": 1}', "best_of_n n=2"]
    paths = [journal_of(Path("out"), name) for name in names]
    assert len(set(paths)) == len(names)
    assert all(path.parent == Path("out/records") for path in paths)
    assert all(len(path.name) < 200 for path in paths)
    assert paths[-1].name == "best_of_n n=2.jsonl"
