"""Candidates are bounded, requests beyond the bound are told so, keys have bounds of their own."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest

from tests.waiting import HANG_SECONDS

from .served import Served, demo_settings
from .traces import Collector
from .wire import PROMPT

RUNNING, WAITING = 8, 24
KEYS = {"CDTEST_SMALL": "sk-small", "CDTEST_NARROW": "sk-narrow"}
OWN = "sk-own"
LONG = {"max_tokens": 600, "ignore_eos": True}
BEST_OF_16 = {"method": "best_of_n", "n": 16}
TALK = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Served]:
    """The demo with room for few candidates, keys, and its spans collected."""
    settings = demo_settings(
        members={},
        presets={"safe": {"method": "blockwise_cd", "k": 4, "m": 32}, "wide": BEST_OF_16},
        admission={"max_running": RUNNING, "max_waiting": WAITING, "max_body_bytes": 100_000},
        keys={
            "small": {
                "api_key_env": "CDTEST_SMALL",
                "limits": {"max_n": 4},
                "max_candidates": 6,
            },
            "narrow": {
                "api_key_env": "CDTEST_NARROW",
                "methods": ["best_of_n"],
                "presets": ["safe"],
            },
        },
    )
    settings["rewards"]["gate"] = {
        **{"kind": "python", "callable": "tests.server.gate:gated", "prefixes": True},
        "timeout": HANG_SECONDS,
    }
    folder = tmp_path_factory.mktemp("bounded")
    with pytest.MonkeyPatch.context() as patch:
        for name, secret in KEYS.items():
            patch.setenv(name, secret)
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        flags = ["--api-key", OWN, "--otlp-traces-endpoint", collector.endpoint]
        flags += ["--shutdown-timeout", str(int(HANG_SECONDS))]
        with Served(settings, folder, flags) as served:
            yield served


async def ask(
    http: httpx2.AsyncClient, policy: Any, key: str = OWN, **fields: Any
) -> httpx2.Response:
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 24, "alignment": policy, **fields}
    return await http.post("/v1/completions", json=body, headers=bearer(key))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def error(answer: httpx2.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


async def gauge(served: Served, name: str) -> float:
    return await asyncio.to_thread(served.sample, name)


async def until(served: Served, name: str, value: float) -> None:
    await asyncio.to_thread(served.wait_for_sample, name, value)


async def test_request_without_room_is_refused_before_any_work(bounded: Served) -> None:
    async with bounded.async_client() as http:
        with bounded.paused():
            full = [asyncio.create_task(ask(http, BEST_OF_16, **LONG)) for _ in range(2)]
            await until(bounded, "cdserve_running_candidates", RUNNING)
            await until(bounded, "cdserve_waiting_candidates", WAITING)
            refused = await ask(http, {"method": "best_of_n", "n": 2})
            plain = asyncio.create_task(ask(http, None))
        assert refused.status_code == 503
        assert error(refused)["type"] == "ServiceUnavailableError"
        assert "32 candidates; 2 more would pass the limit of 32" in error(refused)["message"]
        assert int(refused.headers["retry-after"]) >= 1
        assert "x-should-retry" not in refused.headers
        # A plain request takes none of the slots.
        assert (await plain).status_code == 200
        assert bounded.metric("num_requests_running") <= RUNNING
        for answer in await asyncio.gather(*full):
            assert answer.json()["alignment"]["candidates"] == 16
        assert (await ask(http, BEST_OF_16)).status_code == 200
        assert await gauge(bounded, "cdserve_running_candidates") == 0
        assert await gauge(bounded, 'cdserve_rejected_total{limit="server"}') == 1


async def test_leaving_clients_free_their_capacity(bounded: Served) -> None:
    """Before the answer, within a stream, and within one that nobody has read from."""
    async with bounded.async_client() as http:
        for stream in (False, True):
            with bounded.paused():
                asked = [
                    asyncio.create_task(ask(http, BEST_OF_16, stream=stream, **LONG))
                    for _ in range(2)
                ]
                await until(bounded, "cdserve_waiting_candidates", WAITING)
                for task in asked:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
                await until(bounded, "cdserve_running_candidates", 0)
        every = await asyncio.gather(*(ask(http, BEST_OF_16) for _ in range(2)))
        assert [answer.status_code for answer in every] == [200, 200]


async def test_small_request_does_not_wait_for_a_large_one(
    bounded: Served, collector: Collector
) -> None:
    """The server ends the small response first, whenever a slow client reads the two."""
    large_trace, small_trace = "1" * 32, "2" * 32
    async with bounded.async_client() as one, bounded.async_client() as other:
        one.headers["traceparent"] = f"00-{large_trace}-{'1' * 16}-01"
        other.headers["traceparent"] = f"00-{small_trace}-{'2' * 16}-01"
        with bounded.paused():
            large = asyncio.create_task(ask(one, BEST_OF_16, **LONG))
            await until(bounded, "cdserve_running_candidates", RUNNING)
            small = asyncio.create_task(ask(other, {"method": "best_of_n", "n": 2}))
            await until(bounded, "cdserve_waiting_candidates", RUNNING + 2)
        answers = await asyncio.gather(large, small)
    assert [answer.status_code for answer in answers] == [200, 200]

    def ends(spans: list[Any]) -> dict[str, int]:
        responses = [span for span in spans if span.name == "response best_of_n"]
        return {span.trace_id.hex(): span.end_time_unix_nano for span in responses}

    def complete(spans: list[Any]) -> bool:
        return {large_trace, small_trace} <= ends(spans).keys()

    ended = ends(await asyncio.to_thread(collector.wait_for, complete))
    assert ended[small_trace] < ended[large_trace]


async def test_deadline_holds_for_waiting_candidates(bounded: Served) -> None:
    async with bounded.async_client() as http:
        with bounded.paused():
            large = asyncio.create_task(ask(http, BEST_OF_16, **LONG))
            await until(bounded, "cdserve_running_candidates", RUNNING)
        late = (await ask(http, {**BEST_OF_16, "deadline_ms": 100}, **LONG)).json()
        assert late["alignment"]["deadline"]["passed"]
        # Those that it had not begun by then are none: a slow machine begins few.
        assert 1 <= late["alignment"]["candidates"] <= 16
        large.cancel()
        await until(bounded, "cdserve_running_candidates", 0)


async def test_request_above_the_capacity_is_refused_by_its_field(bounded: Served) -> None:
    async with bounded.async_client() as http:
        for fields, field in (({"n": 3}, "n"), ({"prompt": [PROMPT] * 3}, "prompt")):
            refused = await ask(http, BEST_OF_16, **fields)
            assert refused.status_code == 400
            assert error(refused)["param"] == field
            assert "48 candidates" in error(refused)["message"]
            assert "up to 32" in error(refused)["message"]


async def test_key_has_its_own_limits(bounded: Served) -> None:
    async with bounded.async_client() as http:
        four = {"method": "best_of_n", "n": 4}
        assert (await ask(http, four, key="sk-small")).status_code == 200
        refused = await ask(http, {"method": "best_of_n", "n": 5}, key="sk-small")
        assert (refused.status_code, error(refused)["param"]) == (400, "alignment.n")
        assert "1 to 4" in error(refused)["message"]
        with bounded.paused():
            first = asyncio.create_task(ask(http, four, key="sk-small", **LONG))
            await until(bounded, "cdserve_running_candidates", 4)
            refused = await ask(http, four, key="sk-small")
        assert (refused.status_code, error(refused)["type"]) == (429, "RateLimitError")
        assert "4 candidates; 4 more would pass the limit of 6" in error(refused)["message"]
        assert int(refused.headers["retry-after"]) >= 1
        assert (await ask(http, four)).status_code == 200
        assert (await first).status_code == 200
        limits = (await http.get("/v1/alignment", headers=bearer("sk-small"))).json()["limits"]
        assert (limits["max_n"], limits["max_candidates"]) == (4, 6)


async def test_key_sees_only_what_it_may_use(bounded: Served) -> None:
    async with bounded.async_client() as http:
        refused = await ask(http, {"method": "tokenwise_cd", "beta": 1.0}, key="sk-narrow")
        assert (refused.status_code, error(refused)["param"]) == (400, "alignment.method")
        assert "'none', 'best_of_n'" in error(refused)["message"]
        assert (await ask(http, "safe", key="sk-narrow")).status_code == 200
        assert (await ask(http, None, key="sk-narrow")).status_code == 200
        assert (await ask(http, "wide", key="sk-narrow")).status_code == 400
        assert (await ask(http, None, key="sk-narrow", model="demo:wide")).status_code == 404
        assert (await ask(http, None, model="demo:wide")).status_code == 200
        found = (await http.get("/v1/alignment", headers=bearer("sk-narrow"))).json()
        assert set(found["methods"]) == {"none", "best_of_n"}
        assert set(found["presets"]) == {"safe"}
        models = (await http.get("/v1/models", headers=bearer("sk-narrow"))).json()["data"]
        assert [model["id"] for model in models] == ["demo", "demo:safe"]


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("/v1/responses", {"input": PROMPT}),
        ("/v1/messages", {"messages": TALK, "max_tokens": 8}),
        ("/v1/chat/completions/batch", {"messages": [TALK]}),
    ],
)
async def test_key_has_the_same_limits_in_every_api(
    bounded: Served, route: str, fields: dict[str, Any]
) -> None:
    async with bounded.async_client() as http:

        async def status(headers: dict[str, str], **more: Any) -> int:
            body = {"model": "demo", **fields, **more}
            return (await http.post(route, json=body, headers=headers)).status_code

        narrow, anthropic = bearer("sk-narrow"), {"x-api-key": "sk-narrow"}
        for headers in (narrow, anthropic, {**narrow, "x-api-key": "sk-other"}):
            assert await status(headers, alignment="safe") == 200
            assert await status(headers, alignment="wide") == 400
            assert await status(headers, model="demo:wide") == 404
        assert await status({}) == await status({"x-api-key": "sk-other"}) == 401


async def test_other_keys_are_refused(bounded: Served) -> None:
    async with bounded.async_client() as http:
        assert (await ask(http, None, key="sk-other")).status_code == 401
        assert (await http.get("/v1/alignment")).status_code == 401
        assert (await http.get("/health")).status_code == 200


async def test_huge_body_is_refused(bounded: Served) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b" " * 1000

    async with bounded.async_client() as http:
        said = await ask(http, None, prompt="x" * 200_000)
        chunked = await http.post(
            "/v1/completions",
            content=pieces(),
            headers={**bearer(OWN), "content-type": "application/json"},
        )
        for answer in (said, chunked):
            assert answer.status_code == 413
            assert "100000 bytes" in error(answer)["message"]


async def test_no_route_bypasses_the_keys(bounded: Served) -> None:
    async with bounded.async_client() as http:
        body = {"model": "demo", "prompt": PROMPT, "max_tokens": 2}
        assert (await http.post("/invocations", json=body)).status_code == 404


async def test_spans_trace_decisions_draws_and_scores(
    bounded: Served, collector: Collector
) -> None:
    """One trace, the client's: a response, decisions, draws and scores, and vLLM's requests."""
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with bounded.async_client() as http:
        answer = await http.post(
            "/v1/completions",
            json={
                **{"model": "demo", "prompt": PROMPT, "max_tokens": 64, "ignore_eos": True},
                "alignment": {"method": "blockwise_cd", "k": 3, "m": 32},
            },
            headers={**bearer(OWN), "traceparent": f"00-{trace_id}-{span_id}-01"},
        )
    assert answer.status_code == 200

    def of_trace(spans: list[Any]) -> list[Any]:
        return [span for span in spans if span.trace_id.hex() == trace_id]

    def complete(spans: list[Any]) -> bool:
        names = [span.name for span in of_trace(spans)]
        return names.count("llm_request") >= 6 and "response blockwise_cd" in names

    spans = of_trace(await asyncio.to_thread(collector.wait_for, complete))
    by_id = {span.span_id.hex(): span for span in spans}
    (response,) = (span for span in spans if span.name == "response blockwise_cd")
    assert response.parent_span_id.hex() == span_id
    decisions = [span for span in spans if span.name == "decision"]
    assert [span.parent_span_id for span in decisions] == [response.span_id] * 2
    for name in ("generate", "score"):
        parents = [span.parent_span_id for span in spans if span.name == name]
        assert sorted(parents) == sorted(span.span_id for span in decisions)
    parents = [by_id[s.parent_span_id.hex()].name for s in spans if s.name == "llm_request"]
    assert set(parents) == {"decision"}
    attributes = {each.key: each.value for each in response.attributes}
    assert attributes["cdserve.candidates"].int_value == 6
    assert attributes["cdserve.outcome"].string_value == "length"
    text = answer.json()["choices"][0]["text"]
    for span in spans:  # no prompt and no response
        assert PROMPT not in str(span)
        assert text[:20] not in str(span)


async def test_sigterm_ends_requests_under_way(bounded: Served) -> None:
    """The last test of this server."""
    held = {"rewards": {"gate": 1.0}}
    blocks = {"method": "blockwise_cd", "k": 4, "m": 32, **held}
    searches = (blocks, {"method": "best_of_n", "n": 4, **held})
    async with bounded.async_client() as http:
        with bounded.gate.closed():
            asked = [
                asyncio.create_task(ask(http, policy, max_tokens=200, ignore_eos=True))
                for policy in searches
            ]
            await asyncio.to_thread(bounded.gate.until_wait, len(searches))
            os.kill(bounded.pid, signal.SIGTERM)
            while (refused := await ask(http, None)).status_code == 200:
                pass  # the signal has not arrived yet
            for answer in (refused, await ask(http, blocks)):
                assert answer.status_code == 503
                assert "shutting down" in error(answer)["message"]
        for answer in await asyncio.gather(*asked):
            assert answer.json()["usage"]["completion_tokens"] == 200
    assert await asyncio.to_thread(bounded.wait) == 0
