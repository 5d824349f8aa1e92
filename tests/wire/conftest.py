"""The server of these tests runs on a ``FakeEngine``; with ``--real``, on the demo's model."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI

from tests.conftest import TOOLS, server_settings
from tests.server.served import Served
from tests.waiting import HANG_SECONDS


@pytest.fixture(scope="session")
def fake(request: pytest.FixtureRequest) -> bool:
    """Whether servers run on a ``FakeEngine``."""
    return not request.config.getoption("--real")


@pytest.fixture(scope="session")
def server(
    fake: bool, extension: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server of ``server_settings``, without a reward model."""
    folder = tmp_path_factory.mktemp("wire")
    with Served(server_settings(), folder, TOOLS, packages=extension, fake=fake) as served:
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
