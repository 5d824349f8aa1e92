"""Pairwise judges over real HTTP: what they are asked, and requests that they decide."""

import asyncio
import math
import os
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from itertools import combinations
from typing import Any

import httpx2
import pytest
import yaml
from pydantic import ValidationError

from cdserve import config, kl
from cdserve.decoders import Comparison
from cdserve.errors import ConfigError, RewardFailure
from cdserve.scoring import PairwiseJudge, build_judges
from tests.server.served import demo_settings
from tests.waiting import HANG_SECONDS, until

from .test_http_faults import candidates_in_flight, metric
from .test_http_model import RewardServer

TOURNAMENTS = ("knockout", "borda", "copeland")
POLICIES = ("error", "skip", "base")
QUESTION = re.compile(r"<1>(.*)</1><2>(.*)</2>", re.DOTALL)
TEMPLATE = "{prompt}<1>{first}</1><2>{second}</2>"
Verdict = Callable[[str, str], str]
"""The judge's answer about two texts, in the order in which they are shown."""


def longest(first: str, second: str) -> str:
    """Prefers the longer text, and of equally long ones the one later in the alphabet."""
    return "[[A]]" if (len(first), first) > (len(second), second) else "[[B]]"


def judging(verdict: Verdict) -> Callable[[str, Any], Any]:
    """An endpoint's answers to questions of ``TEMPLATE``."""

    def answer(path: str, body: Any) -> Any:
        assert path == "/v1/chat/completions"
        found = QUESTION.search(body["messages"][-1]["content"])
        assert found is not None
        message = {"role": "assistant", "content": verdict(*found.groups())}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        made = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        return {**made, "choices": [choice]}

    return answer


@pytest.fixture(scope="module")
def endpoint() -> Iterator[RewardServer]:
    with RewardServer() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.meeting.abort()
        running.shutdown()


@pytest.fixture(autouse=True)
def by_length(endpoint: RewardServer) -> None:
    endpoint.answers = [judging(longest)]
    endpoint.requests.clear()
    endpoint.most_at_once = 0


def fields(endpoint: RewardServer, **settings: Any) -> dict[str, Any]:
    made = {"url": f"{endpoint.url}/v1", "model": "m", "template": TEMPLATE, "retries": 0}
    return made | settings


def judge(endpoint: RewardServer, **settings: Any) -> PairwiseJudge:
    made = config.PairwiseJudge.model_validate(fields(endpoint, **settings))
    return build_judges({"liked": made})["liked"]


class TestJudge:
    async def test_pair_is_asked_in_both_orders_at_temperature_0(
        self, endpoint: RewardServer
    ) -> None:
        extra = {"structured_outputs": {"choice": ["[[A]]", "[[B]]"]}}
        asking = judge(endpoint, extra_body=extra)
        assert await asking.compare("Why {first}?", "long", "no") == Comparison(1.0, agreed=True)
        questions = {body["messages"][0]["content"] for body in endpoint.bodies}
        assert questions == {
            "Why {first}?<1>long</1><2>no</2>",
            "Why {first}?<1>no</1><2>long</2>",
        }
        for body in endpoint.bodies:
            assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 512)
            assert body["structured_outputs"] == extra["structured_outputs"]

    @pytest.mark.parametrize(
        ("verdict", "expected"),
        [
            (lambda a, b: "Not [[B]]: [[A]]" if a == "x" else "[[B]]", Comparison(1.0, True)),
            (lambda a, b: "[[A]]", Comparison(0.5, False)),
            (lambda a, b: "[[B]]", Comparison(0.5, False)),
            (lambda a, b: "[[C]]", Comparison(0.5, True)),
            (lambda a, b: "[[C]]" if a == "x" else "[[A]]", Comparison(0.25, False)),
        ],
        ids=["one", "always the first", "always the second", "tie", "tie in one order"],
    )
    async def test_result_is_the_mean_of_the_last_verdicts_of_both_orders(
        self, endpoint: RewardServer, verdict: Verdict, expected: Comparison
    ) -> None:
        endpoint.answers = [judging(verdict)]
        assert await judge(endpoint).compare("", "x", "y") == expected

    async def test_verdict_is_found_by_the_operators_pattern(self, endpoint: RewardServer) -> None:
        endpoint.answers = [judging(lambda a, b: f"[RESULT] {'A' if a == 'x' else 'B'}")]
        asking = judge(endpoint, verdict=r"\[RESULT\]\s*(\w)")
        assert await asking.compare("", "x", "y") == Comparison(1.0, True)

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            ("Both are lovely.", "failed: the judge gave no verdict"),
            ("[[D]]", "failed: the judge gave the verdict 'D'"),
        ],
    )
    async def test_answer_without_a_verdict_is_a_failure_without_its_text(
        self, endpoint: RewardServer, answer: str, said: str
    ) -> None:
        endpoint.answers = [judging(lambda a, b: answer)]
        with pytest.raises(RewardFailure) as caught:
            await judge(endpoint, verdict=r"\[\[(\w)\]\]").compare("", "x", "y")
        assert str(caught.value) == said
        assert answer in caught.value.details

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"template": "{first} or {third}?"}, "it must contain {first} and {second}"),
            ({"verdict": "[AB]"}, "it must have exactly one group; this one has 0"),
            ({"verdict": "("}, "it is not a regular expression"),
            ({"url": "judge:8000"}, "url"),
        ],
    )
    def test_invalid_settings_are_rejected(
        self, endpoint: RewardServer, settings: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(ValidationError, match=said):
            judge(endpoint, **settings)

    def test_missing_api_key_is_rejected_by_its_path(self, endpoint: RewardServer) -> None:
        with pytest.raises(ConfigError, match=r"pairwise_judges\.liked\.api_key_env names NO_KEY"):
            judge(endpoint, api_key_env="NO_KEY")


@pytest.fixture(scope="module")
async def http(
    endpoint: RewardServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx2.AsyncClient]:
    from cdserve.launch.application import Application
    from cdserve.testing import running_app

    judges = {"liked": fields(endpoint, concurrency=3)}
    for on_failure in POLICIES:
        common = {"on_failure": on_failure}
        judges[on_failure] = fields(endpoint, **common)
        judges[f"hasty_{on_failure}"] = fields(endpoint, timeout=0.2, **common)
        judges[f"gone_{on_failure}"] = fields(endpoint, **common) | {"url": "http://127.0.0.1:9/v1"}
    limits = {"max_comparisons": 28}
    settings = demo_settings(playground=False, pairwise_judges=judges, limits=limits)
    path = tmp_path_factory.mktemp("pairwise") / "cdserve.yaml"
    path.write_text(yaml.safe_dump(settings))
    before = dict(os.environ)
    async with running_app(Application.build(path)) as (_, app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://fake", timeout=HANG_SECONDS
        ) as client:
            yield client
    os.environ.clear()
    os.environ.update(before)


def pairwise(judge: str = "liked", tournament: str = "knockout", **policy: Any) -> dict[str, Any]:
    """A policy that selects one of four responses; the score only decides ties."""
    selection = {"pairwise": {"judge": judge, "tournament": tournament}}
    made = {"method": "best_of_n", "n": 4, "selection": selection, "report": "trace"}
    return {**made, "rewards": {"brevity": 1.0}, **policy}


async def ask(http: httpx2.AsyncClient, policy: Any, **fields: Any) -> httpx2.Response:
    body = {"model": "demo", "prompt": "Review: kettle.", "max_tokens": 8, "seed": 1}
    return await http.post("/v1/completions", json={**body, "alignment": policy, **fields})


async def answered(http: httpx2.AsyncClient, policy: Any, **fields: Any) -> dict[str, Any]:
    """Answer of a request that succeeds."""
    answer = await ask(http, policy, **fields)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def candidates_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The candidates of the only decision."""
    (decision,) = answer["alignment"]["trace"]
    candidates: list[dict[str, Any]] = decision["candidates"]
    return candidates


class TestServed:
    @pytest.mark.parametrize("at_once", [None, 2])
    @pytest.mark.parametrize("tournament", TOURNAMENTS)
    async def test_response_that_the_judge_prefers_is_returned(
        self,
        http: httpx2.AsyncClient,
        endpoint: RewardServer,
        tournament: str,
        at_once: int | None,
    ) -> None:
        dial = {} if at_once is None else {"at_once": at_once}
        answer = await answered(http, pairwise("liked", tournament, n=5, **dial))
        candidates, report = candidates_of(answer), answer["alignment"]
        texts = [each["text"] for each in candidates]
        assert len(set(texts)) == 5  # so that every pair is asked about
        best = max(texts, key=lambda text: (len(text), text))
        (chosen,) = [each for each in candidates if each["chosen"]]
        assert answer["choices"][0]["text"] == chosen["text"] == best
        pairs = 4 if tournament == "knockout" else 10
        counts = {"judge": "liked", "made": pairs, "disagreements": 0, "missed": 0}
        assert report["comparisons"] == counts
        assert len(endpoint.requests) == 2 * pairs
        assert sum(each["wins"] for each in candidates) == pairs
        if tournament != "knockout":
            assert chosen["wins"] == 4
        assert report["score"] == chosen["score"]
        bound = kl.best_of_n_bound(5)
        assert (report["kl"]["bound"], report["kl"]["estimator"]) == (bound, "bound")

    async def test_judge_needs_no_reward(self, http: httpx2.AsyncClient) -> None:
        answer = await answered(http, pairwise(rewards={"brevity": 0}))
        texts = [each["text"] for each in candidates_of(answer)]
        assert answer["choices"][0]["text"] == max(texts, key=lambda text: (len(text), text))
        assert answer["alignment"]["score"] == 0

    @pytest.mark.parametrize("tournament", TOURNAMENTS)
    async def test_judge_that_prefers_a_position_leaves_the_highest_score(
        self, http: httpx2.AsyncClient, endpoint: RewardServer, tournament: str
    ) -> None:
        endpoint.answers = [judging(lambda first, second: "[[A]]")]
        names = ("liked", "disagreed")
        before = metric_or_zero("cdserve_comparisons_total", *names)
        # Prefixed texts of 8 tokens: their rewards differ.
        policy = pairwise("liked", tournament, rewards={"sentiment": 1.0})
        report = (await answered(http, policy))["alignment"]
        counts = report["comparisons"]
        assert counts["disagreements"] == counts["made"] > 0
        assert report["ties"] == 1
        assert report["score"] == report["scores"]["max"] > report["scores"]["min"]
        after = metric_or_zero("cdserve_comparisons_total", *names)
        assert after - before == counts["made"]

    async def test_equal_texts_are_not_compared(
        self, http: httpx2.AsyncClient, endpoint: RewardServer
    ) -> None:
        answer = await answered(http, pairwise("liked", "borda", n=8), max_tokens=1)
        texts = Counter(each["text"] for each in candidates_of(answer))
        assert len(texts) < 8
        assert answer["alignment"]["comparisons"]["made"] == math.comb(len(texts), 2)
        asked = [QUESTION.search(body["messages"][0]["content"]) for body in endpoint.bodies]
        assert sorted(found.groups() for found in asked if found) == sorted(
            order for a, b in combinations(texts, 2) for order in ((a, b), (b, a))
        )

    async def test_questions_at_once_stay_within_the_judges_concurrency(
        self, http: httpx2.AsyncClient, endpoint: RewardServer
    ) -> None:
        endpoint.meeting = threading.Barrier(3)
        policy = pairwise("liked", "borda", n=4)
        await asyncio.gather(*(answered(http, policy, seed=seed) for seed in (1, 2)))
        endpoint.meeting = threading.Barrier(1)
        assert len(endpoint.requests) == 24
        assert endpoint.most_at_once == 3

    async def test_comparisons_of_several_choices_add_up(self, http: httpx2.AsyncClient) -> None:
        report = (await answered(http, pairwise(), n=2))["alignment"]
        parts = [each["comparisons"]["made"] for each in report["choices"]]
        assert report["comparisons"]["made"] == sum(parts) == 6

    async def test_stream_has_the_preferred_response_and_the_report(
        self, http: httpx2.AsyncClient
    ) -> None:
        whole = await answered(http, pairwise())
        streamed = (await ask(http, pairwise(), stream=True)).text
        events = [line[6:] for line in streamed.splitlines() if line.startswith("data: {")]
        chunks = [yaml.safe_load(event) for event in events]
        text = "".join(each["text"] for chunk in chunks for each in chunk["choices"])
        assert text == whole["choices"][0]["text"]
        (report,) = [chunk["alignment"] for chunk in chunks if "alignment" in chunk]
        assert report["comparisons"] == whole["alignment"]["comparisons"]

    async def test_description_lists_judges_without_their_addresses(
        self, http: httpx2.AsyncClient
    ) -> None:
        listed = (await http.get("/v1/alignment")).json()["pairwise_judges"]
        assert listed["hasty_skip"] == {
            **{"concurrency": 8, "retries": 0, "max_tokens": 512},
            **{"on_failure": "skip", "timeout": 0.2},
        }

    @pytest.mark.parametrize(
        ("policy", "param", "says"),
        [
            (pairwise("loved"), "selection.pairwise.judge", "'loved'; this server has 'base', "),
            (pairwise("liked", "swiss"), "selection.pairwise.tournament", "'knockout'"),
            (pairwise(rewards={"liked": 1}), "rewards", "'liked'"),
            (pairwise("liked", "borda", n=9), "selection.pairwise.tournament", "compares 36 pairs"),
            (pairwise(stop={"threshold": 1.0}), "stop", "requires the selection 'argmax'"),
            (pairwise(race={"delta": 0.1}), "race", "unless it is 'argmax'"),
        ],
    )
    async def test_invalid_policy_is_refused_by_its_field(
        self, http: httpx2.AsyncClient, policy: dict[str, Any], param: str, says: str
    ) -> None:
        answer = await ask(http, policy)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == f"alignment.{param}"
        assert says in error["message"]


class TestFaults:
    @pytest.mark.parametrize(
        ("prefix", "answer", "message"),
        [
            ("", 500, "failed: the judge answered with status 500"),
            ("", judging(lambda a, b: "Lovely!"), "failed: the judge gave no verdict"),
            ("gone_", 500, "failed: the judge cannot be reached"),
        ],
        ids=["500", "no verdict", "dead"],
    )
    async def test_failure_is_handled_as_on_failure_says(
        self,
        http: httpx2.AsyncClient,
        endpoint: RewardServer,
        prefix: str,
        answer: Any,
        message: str,
    ) -> None:
        endpoint.answers = [answer if callable(answer) else lambda path, body: answer]
        await check_policies(http, prefix, message)
        endpoint.answers = [judging(longest)]
        await answered(http, pairwise("error"))

    async def test_failure_after_some_comparisons_is_handled_as_on_failure_says(
        self, http: httpx2.AsyncClient, endpoint: RewardServer
    ) -> None:
        good, bad = judging(longest), lambda path, body: 500
        endpoint.answers = [good, good, good, good, bad]  # the second round fails
        report = (await answered(http, pairwise("skip")))["alignment"]
        assert report["failed"] == {"skip": 1}
        assert report["comparisons"]["made"] == 2

    async def test_slow_judge_is_handled_as_on_failure_says(
        self, http: httpx2.AsyncClient, endpoint: RewardServer
    ) -> None:
        slow = endpoint.meeting = threading.Barrier(1000)
        await check_policies(http, "hasty_", "took longer than its timeout of 0.2 s")
        endpoint.meeting = threading.Barrier(1)
        slow.abort()
        await answered(http, pairwise("error"))

    async def test_deadline_ends_the_comparisons(
        self, http: httpx2.AsyncClient, endpoint: RewardServer
    ) -> None:
        slow = endpoint.meeting = threading.Barrier(1000)
        policy = pairwise("liked", "borda", deadline_ms=3000, rewards={"sentiment": 1.0})
        report = (await answered(http, policy))["alignment"]
        endpoint.meeting = threading.Barrier(1)
        slow.abort()
        counts = {"judge": "liked", "made": 0, "disagreements": 0, "missed": 6}
        assert report["comparisons"] == counts
        assert "failed" not in report
        assert report["score"] == report["scores"]["max"]

    async def test_client_that_leaves_loses_nothing(
        self, http: httpx2.AsyncClient, endpoint: RewardServer
    ) -> None:
        slow = endpoint.meeting = threading.Barrier(1000)
        task = asyncio.create_task(ask(http, pairwise("error")))
        await asyncio.to_thread(until, lambda: len(endpoint.requests) > 0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        endpoint.meeting = threading.Barrier(1)
        await answered(http, pairwise("error"), seed=2)
        assert candidates_in_flight() == 0
        slow.abort()


async def check_policies(http: httpx2.AsyncClient, prefix: str, message: str) -> None:
    """Three requests at once, one per ``on_failure``."""
    names = [prefix + policy for policy in POLICIES]
    sentiment = {"sentiment": 1.0}
    failed, skipped, base = await asyncio.gather(
        *(ask(http, pairwise(name, rewards=sentiment)) for name in names)
    )
    assert failed.status_code == 500
    assert f"pairwise judge '{names[0]}' {message}" in failed.json()["error"]["message"]
    assert "Lovely" not in failed.text
    for name, answer in zip(names[1:], (skipped, base), strict=True):
        report = answer.json()["alignment"]
        assert report["failed"] == {name: 1}
        assert metric("cdserve_reward_failures_total", reward=name, on_failure=name.split("_")[-1])
    assert skipped.json()["alignment"]["score"] == skipped.json()["alignment"]["scores"]["max"]
    assert candidates_of(base.json())[0]["chosen"]
    assert candidates_in_flight() == 0


def metric_or_zero(name: str, judge: str, outcome: str) -> float:
    from prometheus_client import REGISTRY

    return REGISTRY.get_sample_value(name, {"judge": judge, "outcome": outcome}) or 0.0
