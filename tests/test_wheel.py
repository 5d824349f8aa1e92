"""The wheel, installed in a fresh environment outside the tree, serves the demo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI

from cdserve.client.server import healthy
from tests.server.served import free_port
from tests.waiting import HANG_SECONDS, until

ROOT = Path(__file__).parents[1]
UV = [sys.executable, "-m", "uv"]
OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment with ``cdserve[cpu]`` from the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    environment = folder / "environment"
    subprocess.run([*UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT], check=True)
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    (wheel,) = folder.glob("*.whl")
    # uv does not read pip's find-links; without them, torch's own index has the CPU build.
    index = [] if "UV_FIND_LINKS" in os.environ else ["--torch-backend", "cpu"]
    into = ["--quiet", "--python", environment / "bin" / "python"]
    subprocess.run([*UV, "pip", "install", *into, *index, f"{wheel}[cpu]"], check=True)
    unused = ["torchvision", "torchaudio", "torchcodec"]
    subprocess.run([*UV, "pip", "uninstall", *into, *unused], check=True)
    return environment


def test_wheel_in_a_fresh_environment_serves_the_demo(installed: Path, tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "server.log"
    command = [installed / "bin" / "cdserve", "serve", "--demo", "tiny", "--port", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=tmp_path, env=OUTSIDE, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: healthy(url) or server.poll() is not None, "the wheel's server")
        assert server.poll() is None, log.read_text()
        with OpenAI(base_url=f"{url}/v1", api_key="-", timeout=HANG_SECONDS) as client:
            answer = client.completions.create(
                model="demo",
                prompt="Review:",
                max_tokens=24,
                extra_body={"alignment": {"method": "blockwise_cd", "k": 4, "m": 8}},
            )
        assert answer.alignment["rewards"]  # type: ignore[attr-defined]
    finally:
        server.terminate()
        server.wait(HANG_SECONDS)


def test_torchvision_of_another_build_ends_the_start_with_one_line(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "torchvision").mkdir()
    code = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(code)
    metadata = tmp_path / "torchvision-0.28.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    ended = subprocess.run(
        [installed / "bin" / "cdserve", "serve", "--demo", "tiny", "--port", str(free_port())],
        cwd=tmp_path,
        env=OUTSIDE | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "pip uninstall torchvision torchaudio torchcodec" in line
