"""Other projects' clients, unmodified, against the demo: the table of docs/clients.md."""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cdserve.demo.tiny import MODEL_DIR
from tests.server.served import Served
from tests.waiting import HANG_SECONDS

from .table import BASE, CLIENT_LIBRARIES, CLIENTS, LOAD_GENERATOR, SCRIPTS, Client, table

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from environments import Environment  # noqa: E402
from load_tools import GUIDELLM  # noqa: E402

# Instructor needs an older jiter than OpenAI's current client; LiteLLM takes 170 MB.
SEPARATE = {
    CLIENT_LIBRARIES: Environment("clients", ("litellm>=1.110", "instructor>=1.17"), shown=()),
    LOAD_GENERATOR: GUIDELLM,
}
EACH_CLIENT = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.script)
EACH_RUN = pytest.mark.parametrize(
    "client",
    [
        pytest.param(client, marks=[] if client.environment == BASE else [pytest.mark.deploy])
        for client in CLIENTS
    ],
    ids=lambda client: client.script,
)


def interpreter(client: Client) -> str:
    """Python with the client's package; skips the test without it, except in CI."""
    ci = bool(os.environ.get("CI"))
    if client.environment == BASE:
        if not ci and importlib.util.find_spec(client.module) is None:
            pytest.skip(f"needs {client.requirement}: make installs it")
        return sys.executable
    environment = SEPARATE[client.environment]
    try:
        environment.make()
    except subprocess.CalledProcessError:
        if ci:
            raise
        pytest.skip(f"needs {client.requirement}, which could not be installed")
    return str(environment.python)


@EACH_RUN
def test_client_reads_answers_and_reports(server: Served, client: Client) -> None:
    command = [interpreter(client), SCRIPTS / f"{client.script}.py"]
    if client.tokenizer:
        command.append(MODEL_DIR)
    environment = os.environ | {"OPENAI_BASE_URL": f"{server.base_url}/v1", "OPENAI_API_KEY": "-"}
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    read = {answer["mode"] for answer in answers if answer["report"]}
    dropped = {answer["mode"] for answer in answers if not answer["report"]}
    assert (read, dropped) == (set(client.with_report), set(client.without_report))
    for answer in answers:
        assert answer["text"].strip()
        if report := answer["report"]:
            assert report["method"] == "best_of_n"
            assert report.get("responses", 4) >= 4


@EACH_CLIENT
def test_script_has_the_code_on_the_page(client: Client) -> None:
    script = "".join((SCRIPTS / f"{client.script}.py").read_text().split())
    for code in (client.sends, client.reads):
        assert "".join(code.split()) in script


def test_requirements_are_those_that_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = {*project["dependencies"], *extras["cpu"], *extras["dev"]}
    for client in CLIENTS:
        if client.environment == BASE:
            assert client.requirement in installed
        else:
            assert client.requirement in SEPARATE[client.environment].packages


def test_page_has_the_table() -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    assert table() in page, "run: python -m tests.clients.table"
