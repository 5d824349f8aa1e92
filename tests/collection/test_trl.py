"""The files as TRL reads them, in a separate environment that has TRL (docs/collect.md)."""

import os
import subprocess
from pathlib import Path

import pytest

from cdserve.collection.derive import derive
from cdserve.collection.formats import FORMATS
from cdserve.demo.tiny import MODEL_DIR
from tests.waiting import HANG_SECONDS

from .samples import CHAT, SETTINGS, TEXT, job, response, result

PYTHON = os.environ.get("CDSERVE_TRL_PYTHON")


@pytest.mark.skipif(PYTHON is None, reason="CDSERVE_TRL_PYTHON names no interpreter that has TRL")
def test_trainers_take_a_step_on_every_format(tmp_path: Path) -> None:
    assert PYTHON is not None
    collection = job(tmp_path, prompts=[TEXT, CHAT] * 4, formats=FORMATS)
    results = [
        result(response(" Good.", 1.0), response(" Bad.", 0.0), prompt=prompt, index=index)
        for index, prompt in enumerate(collection.prompts)
    ]
    derive(collection, results, SETTINGS)
    command = [PYTHON, Path(__file__).with_name("trl_check.py"), tmp_path, "--model", MODEL_DIR]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert run.returncode == 0, run.stderr
    for trainer in ("DPOTrainer", "SFTTrainer", "KTOTrainer"):
        assert run.stdout.count(f"{trainer} made a step") == 2
    for form in ("standard", "conversational"):
        assert run.stdout.count(form) == 4
