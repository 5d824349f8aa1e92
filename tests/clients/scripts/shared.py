"""The requests that all scripts send, and how they print their answers.

OPENAI_BASE_URL is the server's URL with /v1; OPENAI_API_KEY can be anything.
"""

import json
import os
import urllib.request
from typing import Any

URL = os.environ["OPENAI_BASE_URL"]
SERVER = URL.removesuffix("/v1")
KEY = "-"
ASKED = "Please write a review of the compact kettle."
MESSAGES = [{"role": "user", "content": ASKED}]
policy = {"method": "best_of_n", "n": 2}


def show(mode: str, text: str, report: Any) -> None:
    """Prints an answer: what was sent, its text, and its report or None."""
    print(json.dumps({"mode": mode, "text": text, "report": report}), flush=True)


def responses() -> float:
    """Number of responses under ``policy``, by the server's metrics."""
    with urllib.request.urlopen(f"{SERVER}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    name = f'cdserve_responses_total{{method="{policy["method"]}"'
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))
