"""A model that does not exist ends a command with one line that names it and what to check."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from cdserve.demo.tiny import MODEL_DIR
from tests.waiting import HANG_SECONDS

NAME = "nobody/no-such-model"
SERVED: dict[str, object] = {"model": str(MODEL_DIR)}
TRAIN = ["--out", "out", "--head", "linear", "--method", "fudge", "--prompts", "prompts.jsonl"]
UNREACHABLE = "http://127.0.0.1:9"  # nothing answers there


def cdserve(
    folder: Path, *arguments: str, hub: str = UNREACHABLE, **environment: str
) -> tuple[int, str]:
    """Exit status and stderr of a command that must end before vLLM is imported."""
    code = (
        "import sys; from cdserve.cli import main\n"
        "try: main()\n"
        "finally: assert not {'vllm', 'torch'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=HANG_SECONDS,
        check=False,
        env=os.environ | {"HF_HOME": str(folder), "HF_ENDPOINT": hub, **environment},
    )
    return done.returncode, done.stderr


def serve(folder: Path, settings: dict[str, object], *flags: str, **options: str) -> str:
    """The only line on stderr of ``cdserve serve`` with these settings, which fails."""
    (folder / "cdserve.yaml").write_text(yaml.safe_dump(settings))
    status, errors = cdserve(folder, "serve", "--config", "cdserve.yaml", *flags, **options)
    assert (status, errors.count("\n")) == (1, 1), errors
    return errors.rstrip()


@contextmanager
def answering(status: int, code: str) -> Iterator[str]:
    """URL of a Hub that answers every request with an error."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Prints nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"model": NAME}, "model"),
        ({**SERVED, "members": {"a": NAME}}, "members.a"),
        ({**SERVED, "rewards": {"a": {"kind": "reward_model", "model": NAME}}}, "rewards.a.model"),
    ],
    ids=["model", "member", "reward model"],
)
def test_model_that_the_hub_does_not_have_is_named(
    settings: dict[str, object], key: str, tmp_path: Path
) -> None:
    with answering(401, "RepoNotFound") as hub:
        message = serve(tmp_path, settings, hub=hub)
    assert message == (
        f"cdserve: {key} is '{NAME}', which is neither a folder nor a model on {hub}; check the "
        "name, and HF_TOKEN if the model is private"
    )


def test_unreachable_hub_is_named_with_the_model(tmp_path: Path) -> None:
    assert serve(tmp_path, {"model": NAME}) == (
        f"cdserve: model is '{NAME}', which is neither a folder nor a model in the cache, and "
        f"{UNREACHABLE} cannot be reached (ConnectError); check the name and the network"
    )


def test_offline_mode_is_named_with_the_model(tmp_path: Path) -> None:
    assert serve(tmp_path, {"model": NAME}, HF_HUB_OFFLINE="1") == (
        f"cdserve: model is '{NAME}', which is neither a folder nor a model in the cache, and "
        "HF_HUB_OFFLINE forbids downloads; check the name"
    )


@pytest.mark.parametrize("model", ["./nope", "/nope/model"])
def test_missing_folder_is_named(model: str, tmp_path: Path) -> None:
    assert serve(tmp_path, {"model": model}) == f"cdserve: model is '{model}', which does not exist"


def test_path_that_is_not_a_name_on_the_hub_is_named(tmp_path: Path) -> None:
    message = serve(tmp_path, {"model": "models/large/final"})
    assert message == (
        "cdserve: model is 'models/large/final', which is neither a folder nor a name on the Hub, "
        "ORGANISATION/MODEL"
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [("./nope", "which does not exist"), (NAME, f"{UNREACHABLE} cannot be reached")],
)
def test_missing_model_of_a_training_is_named(model: str, reason: str, tmp_path: Path) -> None:
    status, errors = cdserve(tmp_path, "heads", "train", "--model", model, *TRAIN)
    assert (status, errors.count("\n")) == (1, 1)
    assert errors.startswith(f"cdserve: --model is '{model}', which ")
    assert reason in errors


class TestPasses:
    """Models that may exist: vLLM decides."""

    def check(
        self, model: str, folder: Path, hub: str = UNREACHABLE, has_token: bool = False
    ) -> None:
        code = (
            "import sys; from cdserve.hub import check_models\n"
            "check_models({'model': sys.argv[1]}, has_token=sys.argv[2] == 'True')"
        )
        environment = os.environ | {"HF_HOME": str(folder), "HF_ENDPOINT": hub}
        command = [sys.executable, "-c", code, model, str(has_token)]
        subprocess.run(command, env=environment, timeout=HANG_SECONDS, check=True)

    def test_cached_model_passes_without_the_hub(self, tmp_path: Path) -> None:
        snapshot = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots" / "0a1b"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").touch()
        self.check(NAME, tmp_path)

    def test_model_behind_a_token_of_vllms_flags_passes(self, tmp_path: Path) -> None:
        with answering(401, "RepoNotFound") as hub:
            self.check(NAME, tmp_path, hub, has_token=True)

    def test_model_of_a_hub_with_an_internal_error_passes(self, tmp_path: Path) -> None:
        with answering(500, "Internal") as hub:
            self.check(NAME, tmp_path, hub)

    @pytest.mark.parametrize("model", ["s3://bucket/model", "nobody/model-GGUF/model-Q4.gguf"])
    def test_names_of_other_kinds_pass(self, model: str, tmp_path: Path) -> None:
        self.check(model, tmp_path)
