"""The files as TRL reads them, by an interpreter of its own environment (docs/collect.md)."""

import os
import subprocess
from pathlib import Path

import pytest

from cdserve.collection.derive import derive
from cdserve.collection.formats import FORMATS
from cdserve.demo import MODEL_DIR
from tests.waiting import HANG_SECONDS

from .made import CHAT, SETTINGS, TEXT, answered, job, response

PYTHON = os.environ.get("CDSERVE_TRL_PYTHON")


@pytest.mark.skipif(PYTHON is None, reason="CDSERVE_TRL_PYTHON names no interpreter that has TRL")
def test_trainers_take_a_step_on_every_format(tmp_path: Path) -> None:
    assert PYTHON is not None
    asked = job(tmp_path, prompts=[TEXT, CHAT] * 4, formats=FORMATS)
    answers = [
        answered(response(" Good.", 1.0), response(" Bad.", 0.0), prompt=prompt, index=index)
        for index, prompt in enumerate(asked.prompts)
    ]
    derive(asked, answers, SETTINGS)
    command = [PYTHON, Path(__file__).with_name("trl_check.py"), tmp_path, "--model", MODEL_DIR]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert run.returncode == 0, run.stderr
    for trainer in ("DPOTrainer", "SFTTrainer", "KTOTrainer"):
        assert run.stdout.count(f"{trainer} made a step") == 2
    for form in ("standard", "conversational"):
        assert run.stdout.count(form) == 4
