"""Two replicas behind Ray Serve: what one server does, and what is lost where one dies."""

import itertools
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
import psutil
import pytest
import ray
import yaml
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from ray import serve
from ray.serve.schema import ServeDeploySchema

from cdserve.errors import ConfigError
from cdserve.ray_serve import NAME, Arguments, app, replica
from tests.server.served import demo_settings, free_port, spawned
from tests.server.wire import BEST_OF_N, BLOCKWISE, check_report, complete, text_of

from .files import DEPLOY, document

LONG = {"prompt": "Film review: Dune.", "max_tokens": 1500, "ignore_eos": True}
RUNNING = "vllm:num_requests_running"
START_SECONDS = 280.0


class Replicas:
    """The cluster's replicas, as its clients and its machine see them."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def http(self) -> httpx2.Client:
        """A plain HTTP client of the proxy."""
        return httpx2.Client(base_url=self.base_url, timeout=500)

    def openai(self) -> OpenAI:
        """OpenAI's own client."""
        return OpenAI(base_url=f"{self.base_url}/v1", api_key="-", max_retries=0, timeout=120)

    def metric(self, name: str) -> dict[str, float]:
        """A metric's sum over its labels, by replica."""
        text = httpx2.get(f"{self.base_url}/metrics", timeout=30).raise_for_status().text
        found = Counter[str]()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name:
                    found[sample.labels["replica"]] += sample.value
        return dict(found)

    def wait_until(self, there: Callable[[float], bool], seconds: float = 20.0) -> dict[str, float]:
        """Waits until as many requests run in the engines as should; how many, by replica."""
        deadline = time.monotonic() + seconds
        while not there(sum((found := self.metric(RUNNING)).values())):
            assert time.monotonic() < deadline, f"{found} run after {seconds} s"
            time.sleep(0.1)
        return found

    def actors(self) -> list[psutil.Process]:
        """The replicas' processes that run; Ray lets those that have ended wait for a while."""
        found = []
        for one in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                ended = one.status() == psutil.STATUS_ZOMBIE
                if one.name().startswith("ray::ServeRepl") and not ended:
                    found.append(one)
        return found

    def first(self) -> tuple[psutil.Process, psutil.Process]:
        """A replica's process and its engine's."""
        actor, *_ = self.actors()
        (engine,) = spawned(actor)
        return actor, engine


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Two replicas of the demo on this machine."""
    config = tmp_path_factory.mktemp("ray") / "cdserve.yaml"
    settings = demo_settings(presets={}, keep_alive=0.2) | {"members": {}}
    settings["engine"]["kv_cache_memory_bytes"] = 128 << 20
    config.write_text(yaml.safe_dump(settings))
    port = free_port()
    with (
        pytest.MonkeyPatch.context() as patch,
        # Paths of sockets are short: pytest's own folders are too deep.
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
    ):
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_process_group_cleanup_enabled", "true")
        # Its own 5 s are too few for a process to start in beside the other tests.
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 << 20,
            _temp_dir=folder,
            log_to_driver=False,
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(app(Arguments(config=config, replicas=2, cpus=0.5)), name=NAME)
            yield Replicas(f"http://127.0.0.1:{port}")
            serve.shutdown()
        finally:
            ray.shutdown()


def test_every_route_is_there(replicas: Replicas) -> None:
    with replicas.openai() as client:
        answer = complete(client, BLOCKWISE, max_tokens=32, ignore_eos=True)
        check_report(answer.alignment, BLOCKWISE, tokens=32)
        assert [model.id for model in client.models.list()] == ["demo"]
    with replicas.http() as http:
        assert http.get("/health").status_code == 200
        assert "blockwise_cd" in http.get("/v1/alignment").json()["methods"]
        assert http.get("/playground").headers["content-type"].startswith("text/html")
        body = {"prompt": "A film.", "responses": [" Good.", " Bad."]}
        assert http.post("/v1/alignment/score", json=body).status_code == 200
        refused = http.post("/v1/completions", json={"alignment": {"method": "nothing"}})
        assert refused.status_code == 400


def test_requests_go_to_both(replicas: Replicas) -> None:
    with replicas.http() as http, ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(_ask, http, BEST_OF_N) for _ in range(16)]
        assert [one.result() for one in asked] == [200] * 16
    answered = replicas.metric("cdserve_responses_total")
    assert len(answered) == 2
    assert all(count >= 1 for count in answered.values())
    assert sum(answered.values()) >= 16


def test_blocks_are_sent_as_they_are_accepted(replicas: Replicas) -> None:
    arrivals: list[float] = []
    with replicas.openai() as client:
        start = time.perf_counter()
        for chunk in complete(client, BLOCKWISE, stream=True, max_tokens=80, ignore_eos=True):
            if text_of(chunk.choices[0]):
                arrivals.append(time.perf_counter() - start)
    assert len(arrivals) == 5
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert arrivals[0] < arrivals[-1] / 2
    assert min(gaps) > max(gaps) / 20  # not held back and sent at once


@pytest.mark.parametrize("policy", [BEST_OF_N, {"method": "none"}], ids=lambda p: p["method"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_the_engine(
    replicas: Replicas, policy: dict[str, Any], stream: bool
) -> None:
    before = sum(replicas.metric("vllm:generation_tokens_total").values())
    _leave(replicas, {"model": "demo", "alignment": policy, "stream": stream, **LONG})
    replicas.wait_until(lambda running: running == 0, seconds=5)
    drawn = sum(replicas.metric("vllm:generation_tokens_total").values()) - before
    assert 0 < drawn < LONG["max_tokens"] * policy.get("n", 1)


def test_an_engine_killed_under_load_takes_only_its_own_requests(replicas: Replicas) -> None:
    """Its replica ends and comes back; whoever asks meanwhile is served by the other one."""
    stop = threading.Event()
    with replicas.http() as http, ThreadPoolExecutor(10) as pool, _setting(stop):
        running = [pool.submit(_ask, http, None, **LONG) for _ in range(8)]
        held = replicas.wait_until(lambda running: running == 8)
        assert min(held.values()) > 0
        asking = [pool.submit(_ask_until, http, stop) for _ in range(2)]
        time.sleep(0.2)
        _, engine = replicas.first()
        engine.kill()
        killed = time.monotonic()
        lost = sum(one.result() != 200 for one in running)
        others = _others(replicas, held)
        stop.set()
        asked = [each for one in asking for each in one.result()]
    (dead,) = held.keys() - others
    assert 1 <= lost <= held[dead]
    failed = [began - killed for began, status in asked if status != 200]
    assert all(began < 0.1 for began in failed), failed
    assert len(failed) <= len(asking)
    assert sum(began > killed for began, _ in asked) > 10
    with replicas.http() as http, ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda _: _ask(http, None), range(32))) == [200] * 32
    answered = replicas.metric("vllm:request_success_total")
    assert answered.keys() == others
    assert min(answered.values()) > 0


def test_a_replica_killed_leaves_no_engine(replicas: Replicas) -> None:
    """Killed, it has no time to end its engine."""
    actor, engine = replicas.first()
    actor.kill()
    with replicas.http() as http:
        assert [_ask(http, None) for _ in range(10)] == [200] * 10
    engine.wait(15)


def test_what_is_under_way_ends_before_a_replica_goes(replicas: Replicas) -> None:
    """The last test of these replicas: searches go on drawing candidates until they end."""
    policy: dict[str, Any] = {**BLOCKWISE, "m": 64}
    with replicas.http() as http, ThreadPoolExecutor(4) as pool:
        fields = {"max_tokens": 320, "ignore_eos": True}
        running = [pool.submit(_ask, http, policy, **fields) for _ in range(4)]
        replicas.wait_until(lambda running: running > policy["k"])
        serve.delete(NAME)
        assert [one.result() for one in running] == [200] * 4
    deadline = time.monotonic() + 10
    while actors := replicas.actors():
        assert time.monotonic() < deadline, actors
        time.sleep(0.1)


def test_the_configuration_is_one_of_serves() -> None:
    content = document(DEPLOY / "ray" / "serve.yaml")
    (application,) = ServeDeploySchema.model_validate(content).applications
    assert application.import_path == f"{app.__module__}:{app.__name__}"
    assert [deployment.name for deployment in application.deployments] == [NAME]
    Arguments.model_validate(application.args)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValidationError, match="replica\n"):
        Arguments.model_validate({"replica": 2})
    assert Arguments.model_validate({"flags": "--max-num-seqs 8"}).flags == ("--max-num-seqs", "8")


def test_flags_of_a_server_that_is_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="--port is 9000"):
        replica(Arguments(flags=["--port", "9000"]))


def _leave(replicas: Replicas, body: dict[str, Any]) -> None:
    """Goes with the first line of a stream, or after a second that an answer is not there in."""
    with (
        suppress(httpx2.ReadTimeout),
        replicas.http() as http,
        http.stream("POST", "/v1/completions", json=body, timeout=1.0) as answer,
    ):
        assert body["stream"]
        next(answer.iter_lines())


def _ask(http: httpx2.Client, policy: dict[str, Any] | None, **fields: Any) -> int:
    """The status of a request for 16 tokens, or of its own fields."""
    body = {"model": "demo", "prompt": "Film review: Heat.", "max_tokens": 16, **fields}
    return http.post("/v1/completions", json=body | {"alignment": policy}).status_code


def _ask_until(http: httpx2.Client, stop: threading.Event) -> list[tuple[float, int]]:
    """Asks again and again; when, and with what status."""
    asked = []
    while not stop.is_set():
        asked.append((time.monotonic(), _ask(http, None)))
    return asked


@contextmanager
def _setting(event: threading.Event) -> Iterator[None]:
    """Sets it at the end, however that comes."""
    try:
        yield
    finally:
        event.set()


def _others(replicas: Replicas, held: Mapping[str, float]) -> set[str]:
    """The replicas, once there are two again and one of them is not of those that there were."""
    deadline = time.monotonic() + START_SECONDS
    while len(found := replicas.metric(RUNNING).keys()) < 2 or found == held.keys():
        assert time.monotonic() < deadline, found
        time.sleep(1.0)
    return set(found)
