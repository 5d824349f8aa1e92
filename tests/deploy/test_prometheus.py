"""A Prometheus that scrapes the demo evaluates the dashboard's queries and the alert rules."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from openai import APIStatusError, OpenAI

from tests.server.served import Served, free_port
from tests.server.wire import BEST_OF_N, BLOCKWISE, complete
from tests.waiting import HANG_SECONDS, until

from .files import DEPLOY, MONITORING, alerts, expression, metrics, panels
from .programs import program

NOT_HERE = {"cdserve_rejected_total"}
"""Metrics without samples: this server never fills."""


class Prometheus:
    """Client of a Prometheus."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.Client(base_url=f"{url}/api/v1", timeout=HANG_SECONDS)

    def ready(self) -> bool:
        """Whether it has scraped the server."""
        # While it starts, it answers 503 with a plain text.
        with suppress(httpx2.TransportError, KeyError, json.JSONDecodeError):
            return bool(self.query('up{job="cdserve"} == 1'))
        return False

    def query(self, query: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        answer = self._http.get("/query", params={"query": query}).json()
        assert answer["status"] == "success", f"{query}: {answer}"
        series: list[dict[str, Any]] = answer["data"]["result"]
        return series

    def rules(self) -> dict[str, dict[str, Any]]:
        """The alert rules by name."""
        groups = self._http.get("/rules").json()["data"]["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def wait_for_scrapes(self, count: int) -> None:
        """Waits for further scrapes of the server."""
        scrapes = 'count_over_time(up{job="cdserve"}[1h])'
        before = float(self.query(scrapes)[0]["value"][1])
        until(lambda: float(self.query(scrapes)[0]["value"][1]) >= before + count, "scrapes")


@pytest.fixture(scope="module")
def prometheus(
    server: Served, client: OpenAI, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """The Prometheus of Compose, scraping each second, after requests of every kind."""
    binary = program("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MONITORING / "alerts.yaml")]
    (scraped,) = config["scrape_configs"]
    scraped["static_configs"] = [{"targets": [server.base_url.removeprefix("http://")]}]
    Path(folder, "prometheus.yaml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{free_port()}"
    flags = {
        "config.file": folder / "prometheus.yaml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": url.removeprefix("http://"),
        "log.level": "warn",
    }
    send(client)
    process = subprocess.Popen([binary, *(f"--{name}={value}" for name, value in flags.items())])
    try:
        running = Prometheus(url)
        until(lambda: process.poll() is not None or running.ready(), "a scrape")
        assert process.poll() is None
        send(client)  # a rate needs an increase between two scrapes
        running.wait_for_scrapes(3)
        yield running
    finally:
        process.terminate()
        process.wait(HANG_SECONDS)


def send(client: OpenAI) -> None:
    """Sends requests that change every metric."""
    requests: list[dict[str, Any]] = [
        {**BLOCKWISE, "k": 2, "rewards": {"sentiment": 1, "early": 1}, "kl_budget": 1},
        {**BEST_OF_N, "rewards": {"optional": 1, "brevity": 1}},
        {**BEST_OF_N, "deadline_ms": 1},
        {**BEST_OF_N, "rewards": {"broken": 1}},
        {**BEST_OF_N, "n": 0},
    ]
    for policy in requests:
        with suppress(APIStatusError):
            complete(client, policy, max_tokens=32)


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_panel_shows_data(prometheus: Prometheus, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        query = expression(target).replace("$instance", ".*")
        series = prometheus.query(query)
        assert series or metrics(query) <= NOT_HERE, query
        assert all(one["value"][1] != "NaN" for one in series), (query, series)


def test_rules_evaluate_without_errors(prometheus: Prometheus) -> None:
    until(
        lambda: all(rule["health"] != "unknown" for rule in prometheus.rules().values()),
        "an evaluation",
    )
    rules = prometheus.rules()
    assert set(rules) == {rule["alert"] for rule in alerts()}
    assert {rule["health"] for rule in rules.values()} == {"ok"}
    assert rules["CdserveDown"]["state"] == "inactive"
    # A third of the responses fail: the alert waits for its five minutes.
    assert rules["CdserveErrors"]["state"] == "pending"
