"""Every code block of the documentation is run or checked.

Python runs. Of the shell, requests to the server run, the flags of `cdserve` are read by its own
parser, and files, modules and targets are there; what else a command is, `UNRUN` says why it is not
run. YAML is settings or policies, JSON a policy or a report. `ELSEWHERE` names blocks that tests of
their own run.
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
from tests.server.served import Served
from tests.waiting import HANG_SECONDS

from .blocks import BLOCKS, ROOT, Block, commands

ADDRESS = re.compile(r"http://(?:localhost|127\.0\.0\.1):\d+")
METHODS = {name: decoder.policy for name, decoder in decoders.load([]).items()}
OUTPUT = "text"  # what a command prints

ELSEWHERE = {
    ("docs/collect.md", "python"): "tests/collection/test_trl.py, where `datasets` is installed",
    ("docs/deploy.md", "python"): "tests/deploy/test_guide.py, with what it prints",
    ("docs/heads.md", "python"): "tests/docs/test_heads.py, with what it trains",
}
UNRUN = {
    "cd": "it only says where",
    "docker": "there is no container engine here; tests/deploy checks its files",
    "export": "it sets a variable for Ray's own command",
    "guidellm": "a load generator with an environment of its own",
    "head": "it only cuts a file",
    "kubectl": "there is no cluster here; tests/deploy checks its files",
    "serve": "Ray Serve's own command; tests/deploy starts replicas",
    "tail": "it only cuts a file",
    "trl-env/bin/pip": "TRL has an environment of its own",
    "trl-env/bin/python": "TRL has an environment of its own",
    "uv": "it changes the environment",
    "vllm": "vLLM's own command",
}


def of(*languages: str, where: Callable[[Block], bool] = lambda block: True) -> Any:
    """Parametrizes a test over the blocks in these languages that nothing else runs."""
    found = [
        block
        for block in BLOCKS
        if block.language in languages
        and (block.page, block.language) not in ELSEWHERE
        and where(block)
    ]
    return pytest.mark.parametrize("block", found, ids=str)


def asks(block: Block) -> bool:
    """Whether a block asks a server."""
    return ADDRESS.search(block.code) is not None


def test_every_block_says_its_language() -> None:
    known = {"python", "sh", "yaml", "json", OUTPUT}
    assert [str(block) for block in BLOCKS if block.language not in known] == []


def test_the_blocks_that_run_elsewhere_are_there() -> None:
    assert set(ELSEWHERE) <= {(block.page, block.language) for block in BLOCKS}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the test in a folder that has the demo where a clone has it."""
    (tmp_path / "cdserve").symlink_to(ROOT / "cdserve")
    monkeypatch.chdir(tmp_path)


@of("python", where=asks)
@pytest.mark.usefixtures("folder")
def test_python_that_asks_a_server_runs(block: Block, server: Served) -> None:
    run(block, ADDRESS.sub(server.base_url, block.code))


@of("python", where=lambda block: not asks(block))
@pytest.mark.usefixtures("folder")
def test_python_runs(block: Block) -> None:
    run(block, block.code)


def run(block: Block, code: str) -> None:
    exec(compile(code, str(block), "exec"), {"__name__": "__main__"})


@of("sh", where=lambda block: any(words[0] == "curl" for words in commands(block.code)))
def test_requests_are_answered(block: Block, server: Served) -> None:
    for url, body in curls(block.code):
        url = ADDRESS.sub(server.base_url, url)
        if body is None:
            answer = httpx2.get(url, timeout=HANG_SECONDS)
        else:
            answer = httpx2.post(url, json=json.loads(body), timeout=HANG_SECONDS)
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
def test_commands_are_as_they_must_be(block: Block) -> None:
    for words in commands(block.code):
        check(words)


def check(words: list[str]) -> None:
    """Fails for a command that cannot work as it is written, or that nothing is known of."""
    match words:
        case ["curl", *_]:
            pass  # run above
        case ["cdserve", *arguments]:
            known, flags = cli.parser().parse_known_args(list(with_options(arguments)))
            assert known.takes_flags or not flags, flags
        case ["make", *targets]:
            rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {target for target in targets if "=" not in target} <= set(rules)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), module
        case ["python" | "bash" | "pytest", path, *_]:
            assert (ROOT / path).exists(), path
        case [command, *_]:
            assert command in UNRUN, f"{command} is not run, and UNRUN does not say why"


def with_options(words: list[str]) -> Iterator[str]:
    """The words without what marks some as optional, ``[--flag VALUE ...]``."""
    for word in words:
        optional = re.fullmatch(r"\[?([\w/.:-]+)\]?", word)
        if word.rstrip("]") != "...":
            yield optional[1] if optional else word


@of("yaml")
def test_yaml_is_settings_or_policies(block: Block, tmp_path: Path) -> None:
    content = yaml.safe_load(block.code)
    if block.code.startswith("# policies.yaml"):
        (path := tmp_path / "policies.yaml").write_text(block.code)
        assert read_policies(path, [])
        return
    settings = Settings.model_validate({"model": "any", **content})
    for name, sent in settings.presets.items():
        parse_object(sent, METHODS, f"presets.{name}")


@of("json")
def test_json_is_a_policy_or_a_report(block: Block) -> None:
    content = json.loads(block.code)
    if "score" in content:
        TypeAdapter(Report).validate_python(content)
    else:
        parse_object(content, METHODS, "alignment")


def test_commands_are_read_as_the_shell_reads_them() -> None:
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
def test_a_command_that_cannot_work_is_seen(command: str) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check(command.split())
