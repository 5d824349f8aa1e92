"""The example scripts run unchanged against a server."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.served import Served
from tests.waiting import HANG_SECONDS

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(server: Served, *command: str | Path) -> str:
    """The output of a command with the server's URL in its environment."""
    environment = os.environ | {"OPENAI_BASE_URL": f"{server.base_url}/v1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=HANG_SECONDS
    ).stdout


def test_openai_client_script_prints_answers_with_reports(server: Served) -> None:
    printed = run(server, sys.executable, EXAMPLES / "openai_client.py")
    assert re.search(r"^plain: \w", printed, re.MULTILINE)
    assert re.search(r"^blockwise: +\w", printed, re.MULTILINE)
    assert re.search(r"KL at most \d\.\d\d nats, \d+ tokens drawn", printed)
    assert re.search(r"^  score -?\d\.\d\d of 8 candidates$", printed, re.MULTILINE)
    assert re.search(r"^refused: alignment\.n: .*at least 1", printed, re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl: apt-get install curl")
def test_curl_script_prints_answers_with_reports(server: Served) -> None:
    printed = run(server, EXAMPLES / "curl.sh", server.base_url)
    assert '"blockwise_cd"' in printed
    assert '"id":"demo:blockwise"' in printed
    assert printed.count('"chosen":true') == 1
    assert printed.count('"chosen":false') == 3
    assert "data: [DONE]" in printed
    assert printed.count('"rewards":{"sentiment":') >= 2


@pytest.mark.skipif(
    importlib.util.find_spec("langchain_openai") is None, reason="needs langchain-openai"
)
def test_langchain_script_prints_answers_with_reports(server: Served) -> None:
    printed = run(server, sys.executable, EXAMPLES / "langchain_chat.py")
    assert re.search(r"^blockwise: +\w", printed, re.MULTILINE)
    assert len(re.findall(r"^best-of-8: \w", printed, re.MULTILINE)) == 2
    assert len(re.findall(r"score -?\d\.\d\d", printed)) == 3
