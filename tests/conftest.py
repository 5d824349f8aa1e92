"""The served demo, started once a run for all tests that ask for it."""

from collections.abc import Iterator

import httpx2
import pytest
from openai import OpenAI

from .server.served import Served, demo_settings

LIMITS = {"max_n": 16, "max_k": 8, "max_candidate_tokens": 8192}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test that needs the server."""
    for item in items:
        if "server" in getattr(item, "fixturenames", ()):
            item.add_marker("server")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo with small limits and two presets."""
    settings = demo_settings(limits=LIMITS, keep_alive=0.2)
    settings["presets"] |= {
        "safe": {"method": "blockwise_cd", "k": 4, "m": 32},
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
        "broken": broken,
        "optional": {**broken, "on_failure": "skip"},
        "decisive": {**broken, "on_failure": "base"},
        "named": {"kind": "regex", "pattern": r"(?i)\bfilm\b"},
        "json": {"kind": "json_valid"},
        "careful": {"kind": "ensemble", "of": ["sentiment", "brevity"], "aggregate": "min"},
        "scaled": {"kind": "length", "target": 40, "standardise": {"mean": -1.0, "std": 0.5}},
    }
    with Served(settings, tmp_path_factory.mktemp("server")) as served:
        yield served


@pytest.fixture(scope="session")
def client(server: Served) -> Iterator[OpenAI]:
    """OpenAI's own client, unmodified."""
    base_url = f"{server.base_url}/v1"
    with OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120) as openai:
        yield openai


@pytest.fixture(scope="session")
def http(server: Served) -> Iterator[httpx2.Client]:
    """A plain HTTP client, for what OpenAI's hides."""
    with server.client() as plain:
        yield plain
