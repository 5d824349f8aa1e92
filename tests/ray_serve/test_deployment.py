"""Two replicas behind Ray Serve: normal requests, disconnects and deaths of replicas."""

import asyncio
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
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
from cdserve.ray_serve import NAME, app, proxy
from cdserve.ray_serve.deployment import Arguments, replica
from tests.deploy.files import DEPLOY, document
from tests.server.gate import FOLDER, Gate
from tests.server.served import demo_settings, free_port, spawned
from tests.server.wire import BEST_OF_N, BLOCKWISE, check_report, complete, text_of
from tests.waiting import HANG_SECONDS, until

ROOT = Path(__file__).parents[2]
RUNNING = "vllm:num_requests_running"
GATE = {"kind": "python", "callable": "tests.server.gate:gated", "timeout": HANG_SECONDS}
HELD: dict[str, Any] = {"method": "best_of_n", "n": 2, "rewards": {"gate": 1.0}}
"""Policy whose requests are not answered while the gate is closed."""
BLOCKS: dict[str, Any] = {"method": "blockwise_cd", "k": 2, "m": 16, "rewards": {"gate": 1.0}}
BLOCK = 16 * 14
"""Maximum characters of a block; a token of the demo has up to 14."""
SEARCH = {"max_tokens": 160, "ignore_eos": True}


class Replicas:
    """The cluster's replicas, seen through HTTP and as processes."""

    def __init__(self, base_url: str, gate: Gate) -> None:
        self.base_url = base_url
        self.gate = gate

    def http(self) -> httpx2.Client:
        """A plain HTTP client of the proxy."""
        return httpx2.Client(base_url=self.base_url, timeout=HANG_SECONDS)

    def openai(self) -> OpenAI:
        """OpenAI's own client."""
        url = f"{self.base_url}/v1"
        return OpenAI(base_url=url, api_key="-", max_retries=0, timeout=HANG_SECONDS)

    def metric(self, name: str, **labels: str) -> dict[str, float]:
        """A metric by replica, summed over all other labels."""
        url = f"{self.base_url}/metrics"
        # A scrape fails where a replica has not answered within 8 s.
        text = until(lambda: _found(httpx2.get(url, timeout=HANG_SECONDS)), "the metrics")
        totals = Counter[str]()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    totals[sample.labels["replica"]] += sample.value
        return dict(totals)

    def wait_until(self, there: Callable[[float], bool]) -> None:
        """Waits for a condition on the number of running engine requests."""
        until(lambda: there(sum(self.metric(RUNNING).values())), "as many running requests")

    def wait_for_another(self, before: set[str]) -> set[str]:
        """Waits until there are two replicas, at least one of them new; returns both."""

        def there() -> set[str]:
            ids = set(self.metric(RUNNING))
            return ids if len(ids) == 2 and ids != before else set()

        return until(there, "a new replica")

    def kill_engine(self, pid: int) -> None:
        """Kills the engine of a replica's process."""
        (engine,) = spawned(psutil.Process(pid))
        engine.kill()

    def actors(self) -> list[psutil.Process]:
        """The running processes of the replicas; Ray keeps ended ones as zombies for a while."""
        alive = []
        for one in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                ended = one.status() == psutil.STATUS_ZOMBIE
                if one.name().startswith("ray::ServeRepl") and not ended:
                    alive.append(one)
        return alive


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Two replicas of the demo on this machine."""
    config = tmp_path_factory.mktemp("ray") / "cdserve.yaml"
    settings = demo_settings(presets={}, keep_alive=HANG_SECONDS) | {"members": {}}
    settings["engine"]["kv_cache_memory_bytes"] = 128 << 20
    settings["rewards"]["gate"] = {**GATE, "prefixes": True}
    config.write_text(yaml.safe_dump(settings))
    port = free_port()
    with (
        pytest.MonkeyPatch.context() as patch,
        # Paths of sockets are short: pytest's own folders are too deep.
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
    ):
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_process_group_cleanup_enabled", "true")
        patch.setenv("RAY_worker_niceness", "0")  # as other tests have; its own is 15
        # Ray replaces a proxy that has not started within 5 s or not answered within 10.
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(HANG_SECONDS))
        patch.setenv("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", str(HANG_SECONDS))
        callback = f"{proxy.__name__}:{proxy.middlewares.__name__}"
        patch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", callback)
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv(FOLDER, str(config.parent))
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
            yield Replicas(f"http://127.0.0.1:{port}", Gate(config.parent))
            serve.shutdown()
        finally:
            ray.shutdown()


def test_replicas_serve_every_route(replicas: Replicas) -> None:
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


def test_concurrent_requests_reach_both_replicas(replicas: Replicas) -> None:
    with replicas.http() as http, ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(_ask, http, BEST_OF_N) for _ in range(16)]
        assert [one.result() for one in asked] == [200] * 16
    answered = replicas.metric("cdserve_responses_total")
    assert len(answered) == 2
    assert all(count >= 1 for count in answered.values())
    assert sum(answered.values()) >= 16


def test_stream_sends_blocks_as_they_are_accepted(replicas: Replicas) -> None:
    """Later blocks wait at the gate until the client has received the earlier ones."""
    text, chunks = "", 0
    with replicas.openai() as client, replicas.gate.closed(above=BLOCK):
        for chunk in complete(client, BLOCKS, stream=True, **SEARCH):
            text, chunks = text + text_of(chunk.choices[0]), chunks + 1
            replicas.gate.allow(len(text) + BLOCK)
    assert len(text) > 2 * BLOCK
    assert chunks >= 10


@pytest.mark.parametrize("policy", [BEST_OF_N, {"method": "none"}], ids=lambda p: p["method"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_disconnect_aborts_the_engine_requests(
    replicas: Replicas, policy: dict[str, Any], stream: bool
) -> None:
    generated = "vllm:generation_tokens_total"
    before = sum(replicas.metric(generated).values())
    body = {"model": "demo", "prompt": "Film review: Dune.", "n": 8, "max_tokens": 1900}
    body |= {"ignore_eos": True, "alignment": policy, "stream": stream}
    async with httpx2.AsyncClient(base_url=replicas.base_url, timeout=HANG_SECONDS) as http:
        request = asyncio.create_task(http.post("/v1/completions", json=body))
        await asyncio.to_thread(replicas.wait_until, lambda running: running > 0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await asyncio.to_thread(replicas.wait_until, lambda running: running == 0)
    drawn = sum(replicas.metric(generated).values()) - before
    assert 0 < drawn < 1900 * 8 * policy.get("n", 1)


def test_other_replica_answers_requests_of_a_killed_engine(replicas: Replicas) -> None:
    """Whole answers, and streams that have not started; meanwhile a new replica starts."""
    before, stop, killed = set(replicas.metric(RUNNING)), threading.Event(), threading.Event()
    with replicas.http() as http, ThreadPoolExecutor(64) as pool, _setting(stop):
        asking = [pool.submit(_ask_until, http, stop, killed) for _ in range(2)]
        with replicas.gate.closed():
            held, waiting = [], Counter[int]()
            while len(held) < 8 or len(waiting) < 2:
                held.append(pool.submit(_ask, http, HELD, stream=len(held) % 2 == 1))
                waiting = replicas.gate.until_wait(len(held))
            (dead, lost), (other, kept) = waiting.most_common()
            replicas.kill_engine(dead)
            killed.set()

            def asked_again() -> bool:
                assert not [one.result() for one in held if one.done()]
                return replicas.gate.waiting()[other] == kept + lost

            until(asked_again, "their second attempts")
        assert [one.result() for one in held] == [200] * len(held)
        others = replicas.wait_for_another(before)
        stop.set()
        asked = [status for one in asking for status in one.result()]
    assert set(asked) == {200}
    with replicas.http() as http, ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda _: _ask(http, None), range(32))) == [200] * 32
    answered = replicas.metric("vllm:request_success_total")
    assert answered.keys() == others
    assert min(answered.values()) > 0


def test_requests_wait_for_a_new_replica_if_all_died(replicas: Replicas) -> None:
    """One replica's engine is killed, and the other replica itself."""
    with replicas.http() as http, ThreadPoolExecutor(64) as pool:
        with replicas.gate.closed():
            held, dead = [], set[int]()
            while len(dead) < 2:  # Ray may send several to one replica
                held.append(pool.submit(_ask, http, HELD))
                dead = set(replicas.gate.until_wait(len(held)))
            one, other = dead
            replicas.kill_engine(one)
            psutil.Process(other).kill()

            def asked_again() -> bool:
                assert not [one.result() for one in held if one.done()]
                waiting = replicas.gate.waiting()
                return sum(waiting[pid] for pid in waiting.keys() - dead) == len(held)

            until(asked_again, "their attempts on new replicas")
        assert [one.result() for one in held] == [200] * len(held)
    until(lambda: len(replicas.metric(RUNNING)) == 2, "two replicas")


def test_disconnect_during_a_retry_ends_the_retry(replicas: Replicas) -> None:
    asyncio.run(_leave_during_a_retry(replicas))


async def _leave_during_a_retry(replicas: Replicas) -> None:
    before = set(replicas.metric(RUNNING))
    body = {"model": "demo", "prompt": "Film review: Dune.", "max_tokens": 16, "alignment": HELD}
    async with httpx2.AsyncClient(base_url=replicas.base_url, timeout=HANG_SECONDS) as http:
        with replicas.gate.closed():
            request = asyncio.create_task(http.post("/v1/completions", json=body))
            (dead,) = await asyncio.to_thread(replicas.gate.until_wait, 1)
            replicas.kill_engine(dead)
            await asyncio.to_thread(replicas.gate.until_wait, 2)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            await asyncio.to_thread(until, lambda: _cancelled(replicas) > 0, "its end")
    await asyncio.to_thread(replicas.wait_for_another, before)


def test_killed_replica_breaks_only_its_own_started_streams(replicas: Replicas) -> None:
    """Each stream has sent a block and waits within its search when the engine is killed."""
    before = set(replicas.metric(RUNNING))
    begun = threading.Semaphore(0)
    with replicas.http() as http, ThreadPoolExecutor(8) as pool:
        with replicas.gate.closed(above=BLOCK):
            streams: list[Future[bool]] = []
            for i in range(8):
                streams.append(pool.submit(_read, http, begun))
                assert begun.acquire(timeout=HANG_SECONDS)
                waiting = replicas.gate.until_wait(i + 1)
            (dead, lost), _ = waiting.most_common()
            replicas.kill_engine(dead)
            until(lambda: sum(one.done() for one in streams) == lost, "the streams that break")
            assert [one.result() for one in streams if one.done()] == [False] * lost
        assert sorted(one.result() for one in streams) == [False] * lost + [True] * (8 - lost)
    replicas.wait_for_another(before)


def test_killed_replica_leaves_no_engine_process(replicas: Replicas) -> None:
    """A killed replica has no time to stop its engine."""
    actor, *_ = replicas.actors()
    (engine,) = spawned(actor)
    actor.kill()
    with replicas.http() as http:
        assert [_ask(http, None) for _ in range(10)] == [200] * 10
    engine.wait(HANG_SECONDS)


def test_running_requests_finish_before_a_replica_stops(replicas: Replicas) -> None:
    """Runs last, since it stops the replicas; running searches draw candidates until they end."""
    with replicas.http() as http, ThreadPoolExecutor(5) as pool:
        with replicas.gate.closed(above=BLOCK):
            running = [pool.submit(_ask, http, BLOCKS, **SEARCH) for _ in range(4)]
            replicas.gate.until_wait(4)
            serve.delete(NAME, _blocking=False)  # Ray waits for 60 s at most
            until(lambda: http.get("/-/routes").json() == {}, "the end of its route")
            assert not any(one.done() for one in running)
        assert [one.result() for one in running] == [200] * 4
    until(lambda: not replicas.actors(), "the end of the replicas")


def test_deploy_configuration_is_valid_for_ray_serve() -> None:
    content = document(DEPLOY / "ray" / "serve.yaml")
    (application,) = ServeDeploySchema.model_validate(content).applications
    module, _, name = application.import_path.partition(":")
    assert getattr(import_module(module), name) is app
    assert [deployment.name for deployment in application.deployments] == [NAME]
    Arguments.model_validate(application.args)


def test_unknown_application_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="replica\n"):
        Arguments.model_validate({"replica": 2})
    assert Arguments.model_validate({"flags": "--max-num-seqs 8"}).flags == ("--max-num-seqs", "8")


def test_http_server_flags_are_refused_under_ray_serve() -> None:
    with pytest.raises(ConfigError, match="--port is 9000"):
        replica(Arguments(flags=["--port", "9000"]))


def _ask(http: httpx2.Client, policy: dict[str, Any] | None, **fields: Any) -> int:
    """The status of a request for 16 tokens, or with other fields; a stream must be complete."""
    body = {"model": "demo", "prompt": "Film review: Heat.", "max_tokens": 16, **fields}
    answer = http.post("/v1/completions", json=body | {"alignment": policy})
    assert not fields.get("stream") or _complete(answer.text), answer.text
    return answer.status_code


def _ask_until(http: httpx2.Client, stop: threading.Event, killed: threading.Event) -> list[int]:
    """The statuses of sequential requests, at least ten of which start after the kill."""
    asked, after = [], 0
    while after < 10 or not stop.is_set():
        after += killed.is_set() or stop.is_set()
        asked.append(_ask(http, None))
    return asked


def _read(http: httpx2.Client, begun: threading.Semaphore) -> bool:
    """Whether a stream was complete; otherwise it must have ended in an error."""
    body = {"model": "demo", "prompt": "Film review: Heat.", "stream": True, **SEARCH}
    lines = []
    try:
        with http.stream("POST", "/v1/completions", json=body | {"alignment": BLOCKS}) as answer:
            for line in answer.iter_lines():
                if line and not lines:
                    begun.release()
                lines.append(line)
    except httpx2.RemoteProtocolError:
        assert lines
        return False
    text = "\n".join(lines)
    assert _complete(text) or '"error"' in text, text
    return _complete(text)


def _found(answer: httpx2.Response) -> str:
    """The text of a stream, empty if it failed."""
    return answer.text if answer.is_success else ""


def _complete(text: str) -> bool:
    return text.rstrip().endswith("data: [DONE]") and '"error"' not in text


def _cancelled(replicas: Replicas) -> float:
    """Number of responses of all replicas whose clients disconnected."""
    return sum(replicas.metric("cdserve_responses_total", outcome="cancelled").values())


@contextmanager
def _setting(event: threading.Event) -> Iterator[None]:
    """Sets the event at the end, also after an exception."""
    try:
        yield
    finally:
        event.set()
