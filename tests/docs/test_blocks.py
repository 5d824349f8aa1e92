"""Every code block of the documentation is run or checked.

Python blocks run. Of shell blocks, requests to the server run, ``cdserve``'s own parser reads its
flags, and files, modules and make targets must exist; ``UNRUN`` lists the other commands with the
reason why they do not run. YAML blocks are settings or policies, JSON blocks a policy or a report.
``ELSEWHERE`` lists blocks that other tests run.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from pydantic import TypeAdapter

from cdserve import cli, decoders
from cdserve.client.policies import read_policies
from cdserve.config import Settings
from cdserve.policy import parse_object
from cdserve.report import Report
from tests.server.served import HTTP, Served

from .blocks import BLOCKS, ROOT, Block, commands

ADDRESS = re.compile(r"http://(?:localhost|127\.0\.0\.1):\d+")
METHODS = {name: decoder.policy for name, decoder in decoders.load([]).items()}
OUTPUT = "text"  # output of a command, or a diagram

ELSEWHERE = {
    ("docs/collect.md", "python"): "tests/collection/test_trl.py, where `datasets` is installed",
    ("docs/deploy.md", "python"): "tests/deploy/test_guide.py, with the output",
    ("docs/heads.md", "python"): "tests/docs/test_heads.py, with the trained head",
}
UNRUN = {
    "cd": "it only changes the folder",
    "cp": "it changes the system",
    "docker": "there is no container engine here; tests/deploy checks its files",
    "export": "it sets a variable for Ray's own command",
    "guidellm": "a load generator that needs a separate environment",
    "head": "it only cuts a file",
    "kubectl": "there is no cluster here; tests/deploy checks its files",
    "pip": "it changes the environment; tests/test_wheel.py runs the commands",
    "serve": "Ray Serve's own command; tests/deploy starts replicas",
    "systemctl": "systemd does not run here; tests/deploy checks the unit",
    "tail": "it only cuts a file",
    "trl-env/bin/pip": "TRL needs a separate environment",
    "trl-env/bin/python": "TRL needs a separate environment",
    "uv": "it changes the environment",
    "vllm": "vLLM's own command",
}


def of(*languages: str, where: Callable[[Block], bool] = lambda block: True) -> Any:
    """Parametrizes a test over the blocks in these languages that no other test runs."""
    blocks = [
        block
        for block in BLOCKS
        if block.language in languages
        and (block.page, block.language) not in ELSEWHERE
        and where(block)
    ]
    return pytest.mark.parametrize("block", blocks, ids=str)


def sends_requests(block: Block) -> bool:
    """Whether a block sends requests to a server."""
    return ADDRESS.search(block.code) is not None


def test_every_code_block_names_a_known_language() -> None:
    languages = {"python", "sh", "yaml", "json", OUTPUT}
    assert [str(block) for block in BLOCKS if block.language not in languages] == []


def test_blocks_run_by_other_tests_exist() -> None:
    assert set(ELSEWHERE) <= {(block.page, block.language) for block in BLOCKS}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the test in a folder that has the demo at the same path as a clone."""
    (tmp_path / "cdserve").symlink_to(ROOT / "cdserve")
    monkeypatch.chdir(tmp_path)


@of("python", where=sends_requests)
@pytest.mark.usefixtures("folder")
def test_python_blocks_with_requests_run(block: Block, server: Served) -> None:
    run(block, ADDRESS.sub(server.base_url, block.code))


@of("python", where=lambda block: not sends_requests(block))
@pytest.mark.usefixtures("folder")
def test_python_blocks_without_requests_run(block: Block) -> None:
    run(block, block.code)


def run(block: Block, code: str) -> None:
    exec(compile(code, str(block), "exec"), {"__name__": "__main__"})


@of("sh", where=lambda block: any(words[0] == "curl" for words in commands(block.code)))
def test_curl_commands_get_status_200(block: Block, server: Served) -> None:
    for url, body in curls(block.code):
        url = ADDRESS.sub(server.base_url, url)
        if body is None:
            answer = httpx2.get(url, **HTTP)
        else:
            answer = httpx2.post(url, json=json.loads(body), **HTTP)
        assert answer.status_code == 200, answer.text


def curls(code: str) -> Iterator[tuple[str, str | None]]:
    """The address and the body of each curl command."""
    for words in commands(code):
        if words[0] != "curl":
            continue
        (url,) = (word for word in words if word.startswith("http://"))
        flags = [i for i, word in enumerate(words) if word in ("-d", "--data", "--json")]
        yield url, words[flags[0] + 1] if flags else None


@of("sh")
def test_shell_commands_use_existing_files_targets_and_flags(block: Block) -> None:
    for words in commands(block.code):
        check(words)


def check(words: list[str]) -> None:
    """Fails for a command that cannot work as written, and for unknown commands."""
    match words:
        case ["curl", *_]:
            pass  # test_curl_commands_get_status_200 runs it
        case ["cdserve", *arguments]:
            parsed, flags = cli.parser().parse_known_args(list(with_options(arguments)))
            assert parsed.takes_flags or not flags, flags
        case ["make", *targets]:
            rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {target for target in targets if "=" not in target} <= set(rules)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), module
        case ["python" | "bash" | "pytest", path, *_]:
            assert (ROOT / path).exists(), path
        case [command, *_]:
            assert command in UNRUN, f"{command} does not run, and UNRUN has no reason for it"


def with_options(words: list[str]) -> Iterator[str]:
    """The words without the marks of optional ones, ``[--flag VALUE ...]``."""
    for word in words:
        optional = re.fullmatch(r"\[?([\w/.:-]+)\]?", word)
        if word.rstrip("]") != "...":
            yield optional[1] if optional else word


@of("yaml")
def test_yaml_blocks_are_valid_settings_or_policies(block: Block, tmp_path: Path) -> None:
    content = yaml.safe_load(block.code)
    if block.code.startswith("# policies.yaml"):
        (path := tmp_path / "policies.yaml").write_text(block.code)
        assert read_policies(path, [])
        return
    settings = Settings.model_validate({"model": "any", **content})
    for name, sent in settings.presets.items():
        parse_object(sent, METHODS, f"presets.{name}")


@of("json")
def test_json_blocks_are_valid_policies_or_reports(block: Block) -> None:
    content = json.loads(block.code)
    if "score" in content:
        TypeAdapter(Report).validate_python(content)
    else:
        parse_object(content, METHODS, "alignment")


def test_shell_blocks_are_split_as_a_shell_splits_them() -> None:
    code = """
    # the demo's chat
    curl http://localhost:8000/v1/completions -H 'Content-Type: application/json' -d '{
      "model": "demo"}' | jq .
    MODEL=a curl -s \\
      http://localhost:8000/v1/alignment  # a comment
    """
    first, second = curls(code)
    assert first == ("http://localhost:8000/v1/completions", '{\n      "model": "demo"}')
    assert second == ("http://localhost:8000/v1/alignment", None)


@pytest.mark.parametrize(
    "command",
    ["rm -rf /", "make nothing", "python nowhere.py", "python -m nowhere", "cdserve serv"],
)
def test_check_rejects_invalid_commands(command: str) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check(command.split())
