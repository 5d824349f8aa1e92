"""nginx in front of the server, with the configuration in deploy/nginx."""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI

from tests.server.gate import OPEN
from tests.server.served import Served, free_port
from tests.server.wire import BEST_OF_N, BLOCKWISE, complete, text_of
from tests.waiting import HANG_SECONDS, until

from .files import DEPLOY
from .programs import program

BLOCK = 16 * 14
"""Maximum number of characters per block: a token of the demo has up to 14."""
READ_TIMEOUT = 4
"""``proxy_read_timeout`` of the tests, in seconds; ``keep_alive`` of their server is 0.2."""
MAIN = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include cdserve.conf;
}
"""


@pytest.fixture(scope="module")
def url(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an nginx in front of the server."""
    binary, folder = program("nginx"), tmp_path_factory.mktemp("nginx")
    port, config = free_port(), (DEPLOY / "nginx" / "cdserve.conf").read_text()
    for written, tested in {
        "server 127.0.0.1:8000;": f"server {server.base_url.removeprefix('http://')};",
        "listen 80;": f"listen 127.0.0.1:{port};",
        "proxy_read_timeout 600s;": f"proxy_read_timeout {READ_TIMEOUT}s;",
    }.items():
        assert config.count(written) == 1
        config = config.replace(written, tested)
    Path(folder, "cdserve.conf").write_text(config)
    Path(folder, "nginx.conf").write_text(MAIN)
    process = subprocess.Popen([binary, "-p", str(folder), "-c", "nginx.conf"])
    address = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        with suppress(httpx2.TransportError):
            return httpx2.get(f"{address}/v1/models", timeout=HANG_SECONDS).status_code == 200
        return False

    try:
        until(lambda: process.poll() is not None or ready(), "nginx")
        assert process.poll() is None
        yield address
    finally:
        process.terminate()
        process.wait(HANG_SECONDS)


@pytest.fixture(scope="module")
def proxied(url: str) -> Iterator[OpenAI]:
    """OpenAI's client of the nginx."""
    with OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=HANG_SECONDS) as openai:
        yield openai


def test_nginx_sends_each_block_once_accepted(server: Served, proxied: OpenAI) -> None:
    policy, text, chunks = {**BLOCKWISE, "rewards": {"gate": 1.0}}, "", 0
    with server.gate.closed(above=BLOCK):
        for chunk in complete(proxied, policy, stream=True, max_tokens=160, ignore_eos=True):
            text, chunks = text + text_of(chunk.choices[0]), chunks + 1
            server.gate.allow(len(text) + BLOCK)
    assert chunks >= 10


def test_comments_outlast_the_read_timeout_of_nginx(server: Served, proxied: OpenAI) -> None:
    policy = {**BEST_OF_N, "rewards": {"gate": 1.0}}
    with server.gate.closed():
        stream = complete(proxied, policy, stream=True)
        time.sleep(2 * READ_TIMEOUT)
        server.gate.allow(OPEN)
        *_, last = stream
    assert last.alignment["candidates"] == BEST_OF_N["n"]


async def test_disconnect_at_nginx_ends_the_candidates(server: Served, url: str) -> None:
    body = {"model": "demo", "prompt": "A review.", "max_tokens": 900, "ignore_eos": True}
    body["alignment"] = {**BLOCKWISE, "rewards": {"gate": 1.0}}
    async with httpx2.AsyncClient(base_url=url, timeout=HANG_SECONDS) as http:
        with server.gate.closed():
            request = asyncio.create_task(http.post("/v1/completions", json=body))
            await asyncio.to_thread(server.gate.until_wait, 1)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
    await asyncio.to_thread(server.wait_for_sample, "cdserve_running_candidates", 0.0)
    await asyncio.to_thread(server.wait_until_idle)


@pytest.mark.parametrize("path", ["/metrics", "/tokenize", "/health", "/docs", "/v1x", "/"])
def test_nginx_hides_other_paths(url: str, path: str) -> None:
    assert httpx2.get(url + path, timeout=HANG_SECONDS).status_code == 404


@pytest.mark.parametrize("path", ["/v1/models", "/v1/alignment", "/playground"])
def test_nginx_serves_api_and_playground(url: str, path: str) -> None:
    answer = httpx2.get(url + path, timeout=HANG_SECONDS, follow_redirects=True)
    assert answer.status_code == 200
