"""The command ``llm``, with a preset as the model."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from shared import ASKED, URL, show

LLM = [sys.executable, "-m", "llm"]


def llm(*arguments: str) -> str:
    return subprocess.run([*LLM, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


with tempfile.TemporaryDirectory() as folder:
    os.environ["LLM_USER_PATH"] = folder
    model = {"model_id": "best", "model_name": "demo:best-of-4", "api_base": URL}
    models = [model, {**model, "model_id": "best-responses", "responses": True}]
    Path(folder, "extra-openai-models.yaml").write_text(json.dumps(models))
    for mode, flags in {
        "chat, whole": ["-m", "best", "--no-stream", "-o", "max_tokens", "24"],
        "chat, streamed": ["-m", "best", "-o", "max_tokens", "24"],
        "Responses, streamed": ["-m", "best-responses", "-o", "max_tokens", "24"],
    }.items():
        text = llm(ASKED, *flags)
        (logged,) = json.loads(llm("logs", "-n", "1", "--json"))
        show(mode, text, logged["response_json"].get("alignment"))
