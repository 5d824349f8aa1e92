"""Mistakes on the command line end it with one line on stderr."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

from cdserve import __version__
from cdserve.cli import main, parser, served_settings
from cdserve.demo.tiny import MODEL_DIR
from tests.waiting import HANG_SECONDS

REWARD = {"kind": "length", "target": 8}


def serve(folder: Path, settings: dict[str, object], *flags: str) -> str:
    """The message that ``cdserve serve`` ends with."""
    config = folder / "cdserve.yaml"
    config.write_text(yaml.safe_dump(settings))
    with patch.dict(os.environ), pytest.raises(SystemExit) as ended:  # it sets variables
        main(["serve", "--config", str(config), "--host", "127.0.0.1", *flags])
    return str(ended.value)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"cdserve {__version__}\n")


def test_misspelt_setting_is_told_without_importing_vllm(tmp_path: Path) -> None:
    config = tmp_path / "cdserve.yaml"
    config.write_text("model: m\nrewrads: {}")
    code = (
        "import sys; from cdserve.cli import main\n"
        "try: main(['serve', '--config', sys.argv[1]])\n"
        "except SystemExit as ended: print(ended)\n"
        "print('vllm' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=True)
    message, imported = done.stdout.splitlines()
    assert message.startswith(f"cdserve: {config}: rewrads is not known; did you mean rewards; ")
    assert imported == "False"


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"model": "./nope"}, "model"),
        ({"model": str(MODEL_DIR), "members": {"a": "./nope"}}, "members.a"),
        (
            {
                "model": str(MODEL_DIR),
                "rewards": {"a": {"kind": "reward_model", "model": "./nope"}},
            },
            "rewards.a.model",
        ),
    ],
)
def test_missing_folder_of_a_model_is_named(
    settings: dict[str, object], key: str, tmp_path: Path
) -> None:
    assert serve(tmp_path, settings) == f"cdserve: {key} is './nope', which does not exist"


@pytest.mark.parametrize("servers", ["1", "2"])
def test_port_in_use_is_named(servers: str, tmp_path: Path) -> None:
    settings = {"model": str(MODEL_DIR), "rewards": {"brief": REWARD}}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = serve(tmp_path, settings, "--port", port, "--api-server-count", servers)
    assert message == f"cdserve: --host 127.0.0.1 --port {port}: Address already in use"


def test_impossible_port_is_named(tmp_path: Path) -> None:
    settings = {"model": str(MODEL_DIR), "rewards": {"brief": REWARD}}
    message = serve(tmp_path, settings, "--port", "70000")
    assert message.startswith("cdserve: --host 127.0.0.1 --port 70000: ")


def test_settings_from_a_pipe_are_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = yaml.safe_dump({"model": "./nope"})
    with ThreadPoolExecutor() as writer:
        writer.submit(pipe.write_text, text)
        with patch.dict(os.environ), pytest.raises(SystemExit) as ended:
            main(["serve", "--config", str(pipe)])
    assert str(ended.value) == "cdserve: model is './nope', which does not exist"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--portx", "1"],
            "--portx is not a flag of cdserve serve or of vLLM; did you mean --port",
        ),
        (["--dtype", "int3"], "argument --dtype: invalid choice: 'int3' (choose from "),
    ],
)
def test_invalid_flag_of_vllm_is_one_line(flags: list[str], message: str, tmp_path: Path) -> None:
    settings = {"model": str(MODEL_DIR), "rewards": {"r": REWARD}, "default_reward": "r"}
    refusal = serve(tmp_path, settings, *flags)
    assert refusal.startswith(f"cdserve: {message}")
    assert "\n" not in refusal


@pytest.mark.parametrize(
    ("flags", "config", "changes"),
    [
        (["--model", "./m"], None, ['model="./m"']),
        (["--model", "a:b", "--set", "rewards={}"], None, ['model="a:b"', "rewards={}"]),
        (["--config", "c.yaml", "--model", "m"], Path("c.yaml"), ['model="m"']),
    ],
)
def test_model_of_the_command_line_is_served(
    flags: list[str], config: Path | None, changes: list[str]
) -> None:
    assert served_settings(parser().parse_args(["serve", *flags])) == (config, changes)


def test_model_and_demo_are_refused_together() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--model", "m", "--demo", "tiny"])
    assert str(ended.value) == (
        "cdserve: --model cannot be used with --demo tiny, which has its own"
    )
