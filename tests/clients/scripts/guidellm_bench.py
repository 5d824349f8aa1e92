"""The command ``guidellm run``."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from shared import SERVER, policy, responses, show

(tokenizer,) = sys.argv[1:]
for mode, route, stream in (
    ("completions, streamed", "/v1/completions", True),
    ("chat, whole", "/v1/chat/completions", False),
):
    before = responses()
    backend = {
        "kind": "openai_http",
        "target": SERVER,
        "model": "demo",
        "request_format": route,
        "stream": stream,
        "extras": {"body": {"alignment": policy}},
    }
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "report.json")
        flags = [
            *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
            *("--backend", json.dumps(backend)),
            *("--data", "kind=synthetic_text,prompt_tokens=16,output_tokens=24"),
            *("--profile", "kind=concurrent,streams=2"),
            *("--constraint", "kind=max_requests,count=4"),
            *("--output", f"kind=json,path={output}", "--disable-console"),
        ]
        command = [sys.executable, "-m", "guidellm", "run", *flags]
        environment = os.environ | {"GUIDELLM__MAX_WORKER_PROCESSES": "1"}
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
        (benchmark,) = json.loads(output.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    # guidellm sometimes loses its last request; the server's metrics count all.
    assert 0 < totals["successful"] == totals["total"], totals
    drawn = responses() - before
    text = benchmark["requests"]["successful"][0]["output"]
    show(mode, text, {"method": policy["method"], "responses": drawn})
