"""What the README tells readers to run works against a real server."""

import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx2

from tests.server.served import Served

README = Path(__file__).parents[2] / "README.md"
ADDRESS = re.compile(r"http://(?:localhost|127\.0\.0\.1):\d+")
SHELLS = {"bash", "sh", "shell", "console"}


def blocks(*languages: str) -> list[str]:
    """The README's code blocks in the languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def test_the_python_blocks_run(server: Served) -> None:
    for code in blocks("python"):
        if "openai" in code:
            exec(compile(ADDRESS.sub(server.base_url, code), str(README), "exec"), {})


def test_the_curl_commands_are_accepted(server: Served) -> None:
    for code in blocks(*SHELLS):
        for url, body in curls(ADDRESS.sub(server.base_url, code)):
            answer = (
                httpx2.get(url)
                if body is None
                else httpx2.post(url, json=json.loads(body), timeout=120)
            )
            assert answer.status_code == 200, answer.text


def curls(code: str) -> Iterator[tuple[str, str | None]]:
    """The address and the body of each curl command in a shell block."""
    words = shlex.split(code, comments=True)
    bounds = [*(i for i, word in enumerate(words) if word == "curl"), len(words)]
    for start, end in itertools.pairwise(bounds):
        command = words[start:end]
        (url,) = (word for word in command if word.startswith("http://"))
        flags = [i for i, word in enumerate(command) if word in ("-d", "--data", "--json")]
        yield url, command[flags[0] + 1] if flags else None


def test_a_curl_command_is_read_as_the_shell_reads_it() -> None:
    code = """
    # chat
    curl http://localhost:8000/v1/completions -H 'Content-Type: application/json' -d '{
      "model": "demo"}' | jq .
    curl -s http://localhost:8000/v1/alignment
    """
    first, second = curls(code)
    assert first == ("http://localhost:8000/v1/completions", '{\n      "model": "demo"}')
    assert second == ("http://localhost:8000/v1/alignment", None)
