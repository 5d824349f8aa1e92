"""The served demo, started once per run for all tests that ask for it.

`make test` runs them in one process, next to others (tests/parts.py). Each torch has one thread on
any core: threads that wait for each other's core take many times as long.
"""

import os
import subprocess
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as of_hypothesis
from openai import OpenAI

from .parts import DEPLOY, FILES, FIRST_HALF, OWN_SERVERS, SLOW, WIRE
from .server.served import CONFIDENCES, Served, demo_settings
from .v2 import mode
from .waiting import HANG_SECONDS

TOOLS = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
EXTENSION = Path(__file__).parents[1] / "examples" / "extension"
LIMITS = {"max_n": 16, "max_k": 8, "max_candidate_tokens": 8192}


# Its own limits are 200 ms an example, and a warning that fails the test if data come slowly.
of_hypothesis.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
of_hypothesis.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real", action="store_true", help="run tests/wire on the demo's model")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that need the server or are slow; skips what model runner V2 cannot run."""
    paths = {
        "slow": SLOW,
        "own_servers": OWN_SERVERS,
        "deploy": DEPLOY,
        "first_half": FIRST_HALF,
    }
    for item in items:
        for marker, places in paths.items():
            if within(item, places):
                item.add_marker(marker)
        if "server" in getattr(item, "fixturenames", ()) and WIRE not in item.path.parents:
            item.add_marker("server")
        if not within(item, DEPLOY):
            check_listed(item)
        if mode.is_on() and (found := item.get_closest_marker("not_on_v2")):
            item.add_marker(pytest.mark.skip(reason=f"model runner V2: {found.args[0]}"))


def within(item: pytest.Item, places: Sequence[Path]) -> bool:
    """Whether the test is in one of the files or folders."""
    return any(path == item.path or path in item.path.parents for path in places)


def check_listed(item: pytest.Item) -> None:
    """Raises ``UsageError`` if the process of `make test` for this test leaves out its file."""
    for marker, places in FILES.items():
        if item.get_closest_marker(marker):
            if not within(item, places):
                raise pytest.UsageError(f"{item.nodeid} is {marker}; list its file in parts.FILES")
            return


def faulty(name: str, **fields: Any) -> dict[str, Any]:
    """A reward of ``tests/server/faulty.py``."""
    return {"kind": "python", "callable": f"tests.server.faulty:{name}", **fields}


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small reward model."""
    from cdserve.demo.tiny.build.reward_model import make_reward_model  # imports Transformers

    made = tmp_path_factory.mktemp("models") / "rm"
    make_reward_model(made, reviews=150)
    return made


@pytest.fixture(scope="session")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package of ``examples/extension`` is installed in."""
    folder = tmp_path_factory.mktemp("installed")
    flags = ["--quiet", "--offline", "--no-deps", "--no-build-isolation", "--target", str(folder)]
    install = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, *flags]
    subprocess.run([*install, str(EXTENSION)], check=True, timeout=HANG_SECONDS)
    return folder


def server_settings() -> dict[str, Any]:
    """The demo with small limits, more presets and rewards, and a decoder of another package."""
    settings = demo_settings(limits=LIMITS, keep_alive=0.2, decoders=["good_enough"])
    settings["presets"] |= {
        "safe": {"method": "blockwise_cd", "k": 4, "m": 16},
        "best-of-4": {"method": "best_of_n", "n": 4},
    }
    settings["presets"]["away"] = {
        "method": "logit_mixing",
        "weights": {"base": 2.0, "tuned": -1.0},
    }
    settings["members"]["twin"] = settings["members"]["tuned"]
    # Two strings cannot be divided: a reward that fails on every response.
    broken = {"kind": "python", "callable": "operator:truediv"}
    settings["rewards"] |= {
        "variety": {
            **{"kind": "python", "callable": "cdserve_extension.rewards:variety"},
            "prefixes": True,
        },
        "optional": {**broken, "on_failure": "skip"},
        "decisive": {**broken, "on_failure": "base"},
        "constant": {
            **{"kind": "length", "target": 10**6, "tolerance": 10**6},
            "standardise": {"mean": -7.5, "std": 1.0},
        },
        "halved": {"kind": "loglik", "standardise": {"mean": 3.0, "std": 2.0}},
        "gate": {
            **{"kind": "python", "callable": "tests.server.gate:gated", "prefixes": True},
            "timeout": HANG_SECONDS,
        },
        "slow": faulty("slow"),
        "named": {"kind": "regex", "pattern": r"(?i)\bfilm\b"},
        "json": {"kind": "json_valid"},
        "careful": {"kind": "ensemble", "of": ["sentiment", "brevity"], "aggregate": "min"},
        "fluent": {"kind": "loglik"},
        **CONFIDENCES,
        "dpo": {"kind": "log_ratio", "tuned": "tuned", "reference": "ref", "beta": 0.5},
        "scaled": {"kind": "length", "target": 40, "standardise": {"mean": -1.0, "std": 0.5}},
    }
    failing = {
        "hangs": faulty("hangs", timeout=0.3),
        "nan": faulty("nan"),
        "broken": broken,
        # Nothing answers there.
        "dead": {
            **{"kind": "judge", "url": "http://127.0.0.1:9/v1", "model": "none", "retries": 0},
            "rubric": "{response}",
        },
    }
    settings["rewards"] |= failing
    settings["pairwise_judges"] = {
        # Nothing answers there.
        "absent": {
            **{"url": "http://127.0.0.1:9/v1", "model": "none", "retries": 0},
            "on_failure": "skip",
        },
    }
    settings["extractors"] = {
        "last_word": "tests.server.answers:last_word",
        "broken_answer": "tests.server.answers:broken",
    }
    for policy in ("skip", "base"):
        settings["rewards"] |= {
            f"{name}_{policy}": {**reward, "on_failure": policy} for name, reward in failing.items()
        }
    return settings


@pytest.fixture(scope="session")
def server(
    reward_model: Path, extension: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server of ``server_settings`` on the demo's model, with a reward model."""
    settings = server_settings()
    # A path as an operator writes it: relative to the settings' folder.
    (folder := tmp_path_factory.mktemp("server")).joinpath("rm").symlink_to(reward_model)
    model = {
        "kind": "reward_model",
        "model": "./rm",
        "output": "sentiment",
        "engine": {"max_model_len": 512, "kv_cache_memory_bytes": 128 << 20},
    }
    settings["rewards"] |= {"model": model, "early": {**model, "prefixes": True}}
    with Served(settings, folder, TOOLS, packages=extension) as served:
        yield served


@pytest.fixture(scope="session")
def client(server: Served) -> Iterator[OpenAI]:
    """OpenAI's own client, unmodified."""
    base_url = f"{server.base_url}/v1"
    with OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=HANG_SECONDS) as openai:
        yield openai


@pytest.fixture(scope="session")
def http(server: Served) -> Iterator[httpx2.Client]:
    """A plain HTTP client, for what OpenAI's hides."""
    with server.client() as plain:
        yield plain
