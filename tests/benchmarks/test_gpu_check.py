"""The check of a GPU, by what of it runs without one."""

import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_check
import psutil
import pytest
import torch
from gpu import answers, graphs, steps, syncs
from gpu.probe import Syncs
from gpu.reference import Reference
from gpu.requests import SEARCHES, STEERED, TILT, body
from gpu.served import Setup, at_once
from vllm.utils import gpu_sync_debug

import cdserve
from tests.server.served import Served
from tests.waiting import HANG_SECONDS, until

SYNC = "called a synchronizing CUDA operation"
"""As PyTorch warns."""


def checked(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the parts of a check on the CPU."""
    out = folder / "gpu.json"
    status = gpu_check.main(["--device", "cpu", "--out", str(out), *arguments])
    parts: dict[str, Any] = json.loads(out.read_text())["parts"]
    return status, parts


def test_a_served_demo_passes(server: Served, tmp_path: Path) -> None:
    status, parts = checked(tmp_path, "--parts", "2", "--url", server.base_url)
    assert status == 0, parts
    assert parts["answers"]["errors"].keys() >= {*STEERED, *SEARCHES}
    assert parts["answers"]["law"]["draws"] == 1024
    setup = Setup("cpu", server.base_url)
    compared = graphs.check(setup)
    assert compared["ok"], compared
    assert compared["requests"] == 6
    assert "skipped" in syncs.check(setup)


def test_answers_of_another_policy_are_beyond_the_widest_tolerance(server: Served) -> None:
    limits = answers.TOLERANCES["cuda"]
    plain, tilted = at_once(
        server.base_url,
        [body(policy, temperature=0.0, ignore_eos=True) for policy in (None, TILT)],
    )
    errors = answers.steered_errors(Reference(), STEERED["tilt"], {**tilted, **_choices(plain)})
    assert errors["logprob"] > limits["logprob"]
    assert errors["argmax"] > limits["argmax"]
    assert errors["kl"] > limits["kl"]
    apart = graphs.difference(plain, tilted)
    assert any(off > limits[kind] for kind, off in apart.items())


def _choices(answer: Any) -> dict[str, Any]:
    return {"choices": answer["choices"]}


def test_a_part_that_fails_leaves_the_others(tmp_path: Path) -> None:
    status, parts = checked(tmp_path, "--parts", "2,5", "--url", "http://127.0.0.1:9")
    assert status == 1
    assert parts["answers"]["ok"] is False
    assert any("ConnectError" in line for line in parts["answers"]["error"])
    assert parts["kernels"]["ok"] is True
    assert {row["operation"] for row in parts["kernels"]["rows"]} == {
        *("score", "tilt", "mix", "mix and tilt")
    }


def test_a_part_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    status, parts = checked(tmp_path, "--parts", "4,5", "--minutes", "0.001")
    assert status == 1
    assert "it took more than" in parts["syncs"]["error"][-1]
    assert parts["kernels"]["error"] == ["no time was left for it"]


def test_a_check_that_is_terminated_ends_its_part() -> None:
    command = [sys.executable, gpu_check.__file__, "--device", "cpu", "--parts", "5"]
    check = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert check.stderr is not None
    next(line for line in check.stderr if line.startswith("  kernels: "))  # it is at work
    (part,) = psutil.Process(check.pid).children()
    check.terminate()
    assert check.wait(HANG_SECONDS) == 128 + signal.SIGTERM
    until(lambda: not part.is_running() or part.status() == psutil.STATUS_ZOMBIE, "its end")


def test_without_a_gpu_the_exit_status_is_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 2
    assert "finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "2,9"], "part 9; there are 1 to 6"),
        (["--url", "http://127.0.0.1:9"], "--url needs --device cpu"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


class TestSyncs:
    @pytest.fixture
    def recorder(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Syncs]:
        """vLLM's check as in a step on a GPU, but that PyTorch is not told to warn."""
        monkeypatch.setattr(gpu_sync_debug, "_SYNC_CHECK_MODE", "warn")
        monkeypatch.setattr(gpu_sync_debug, "_sync_check_enabled", True)
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
        with warnings.catch_warnings():
            yield Syncs()

    def warn(self, file: str, message: str = SYNC) -> None:
        """A warning in a step, from a line of cdserve's."""
        name = Path(cdserve.__file__).parent / file
        code = compile(f"import warnings; warnings.warn({message!r})", name, "exec")
        gpu_sync_debug.with_gpu_sync_check(lambda: exec(code))()

    def test_each_is_put_down_to_the_innermost_line(self, recorder: Syncs) -> None:
        for _ in range(2):
            self.warn("worker/made_up.py")
        (found,) = recorder.read()
        assert found["at"] == "cdserve/worker/made_up.py:1 <module>"
        assert found["times"] == 2

    def test_recorder_prints_warnings_that_are_not_of_synchronisation(
        self, recorder: Syncs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.warn("worker/made_up.py", "something else")
        assert recorder.read() == []
        assert "something else" in capsys.readouterr().err

    def test_only_what_plain_requests_do_not_show_counts(self) -> None:
        def seen(*lines: str) -> list[dict[str, Any]]:
            return [{"at": line, "within": [], "times": 1} for line in lines]

        plain = {"plain": seen("vllm/a.py:1 f"), "tilt": seen("vllm/a.py:1 f")}
        assert syncs.verdict(seen("x"), plain)["ok"]
        made = syncs.verdict(seen("x"), {**plain, "mix": seen("cdserve/b.py:2 g")})
        assert made["wrong"] == ["mix: cdserve/b.py:2 g synchronises, 1 times"]
        assert not syncs.verdict([], plain)["ok"]  # the check saw nothing at all


def test_step_times_are_those_of_steps_with_all_rows() -> None:
    made = [(2, 8, 0.0), (2, 2, 0.1), *((2, 2, 0.1 + 0.002 * i) for i in range(1, 6)), (1, 1, 9.0)]
    recorded = [{"rows": n, "tokens": t, "start": at, "host": 1.0} for n, t, at in made]
    assert steps.times(recorded, rows=2)["ms"] == pytest.approx(2.0)
    with pytest.raises(RuntimeError, match="0 steps of 3 rows"):
        steps.times(recorded, rows=3)
