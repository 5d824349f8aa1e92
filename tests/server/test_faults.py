"""Scorers that hang, die, give no number or are slow: what is declared for them happens."""

import asyncio
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from .served import Served
from .wire import complete

PROMPT = "Film review: The Velvet Promise."
THREADS = 16
"""That a reward may have at once."""
FAULTS = {
    "hangs": "took longer than its timeout of 0.3 s",
    "nan": "is nan, not a finite number",
    "broken": "failed",
    "dead": "failed",
}


def best_of(rewards: dict[str, float], **fields: Any) -> dict[str, Any]:
    return {"method": "best_of_n", "n": 4, "rewards": rewards, **fields}


def body(policy: dict[str, Any], **fields: Any) -> dict[str, Any]:
    sent = {"model": "demo", "prompt": PROMPT, "max_tokens": 24, "seed": 3}
    return {**sent, "alignment": policy, **fields}


@pytest.mark.parametrize("fault", FAULTS)
def test_error_fails_the_request_and_names_the_reward(http: httpx2.Client, fault: str) -> None:
    answer = http.post("/v1/completions", json=body(best_of({fault: 1.0, "sentiment": 1.0})))
    assert answer.status_code == 500
    message = answer.json()["error"]["message"]
    assert f"reward {fault!r} {FAULTS[fault]}" in message


@pytest.mark.parametrize("fault", FAULTS)
def test_skip_decides_by_the_other_rewards_and_reports_it(client: OpenAI, fault: str) -> None:
    alone = complete(client, best_of({"sentiment": 1.0}), prompt=PROMPT, seed=3)
    answer = complete(
        client, best_of({"sentiment": 1.0, f"{fault}_skip": 100.0}), prompt=PROMPT, seed=3
    )
    assert answer.choices[0].text == alone.choices[0].text
    assert answer.alignment["failed"] == {f"{fault}_skip": 1}
    assert set(answer.alignment["rewards"]) == {"sentiment"}


@pytest.mark.parametrize("fault", FAULTS)
def test_base_takes_the_first_draw_and_reports_it(client: OpenAI, fault: str) -> None:
    plain = complete(client, {"method": "none"}, prompt=PROMPT, seed=3)
    answer = complete(
        client, best_of({"sentiment": 1.0, f"{fault}_base": 1.0}), prompt=PROMPT, seed=3
    )
    assert answer.choices[0].text == plain.choices[0].text
    assert answer.alignment["failed"] == {f"{fault}_base": 1}


def test_slow_reward_is_awaited(client: OpenAI) -> None:
    answer = complete(client, best_of({"slow": 1.0}, report="trace"), prompt=PROMPT, seed=3)
    candidates = answer.alignment["trace"][0]["candidates"]
    assert answer.alignment["score"] == max(len(c["text"]) for c in candidates)
    assert "failed" not in answer.alignment


async def test_hanging_rewards_do_not_block_other_requests(server: Served) -> None:
    """More requests hang at once than there are threads for them; the rest are answered first."""
    others = [{"method": "none"}, best_of({"sentiment": 1.0}), best_of({"slow": 1.0})] * 4
    async with server.async_client() as http:

        async def ask(policy: dict[str, Any]) -> int:
            answer = await http.post("/v1/completions", json=body(policy))
            return answer.status_code

        with server.gate.closed():
            stuck = [asyncio.create_task(ask(best_of({"gate": 1.0}, n=2))) for _ in range(20)]
            await asyncio.to_thread(server.gate.until_wait, THREADS)
            assert set(await asyncio.gather(*map(ask, others))) == {200}
            assert not any(task.done() for task in stuck)
        assert set(await asyncio.gather(*stuck)) == {200}


async def test_rewards_without_a_free_thread_time_out(server: Served) -> None:
    async with server.async_client() as http:
        sent = body(best_of({"hangs": 1.0}))
        asked = [http.post("/v1/completions", json=sent) for _ in range(THREADS + 4)]
        answers = await asyncio.gather(*asked)
    for answer in answers:
        assert answer.status_code == 500
        assert FAULTS["hangs"] in answer.json()["error"]["message"]


async def test_no_request_is_lost_among_failing_ones(server: Served) -> None:
    kinds = [f"{fault}{policy}" for fault in FAULTS for policy in ("", "_skip", "_base")]
    async with server.async_client() as http:

        async def ask(name: str, index: int) -> int:
            sent = body(best_of({"sentiment": 1.0, name: 1.0}), seed=index, stream=False)
            return (await http.post("/v1/completions", json=sent)).status_code

        asked = [(name, index) for index in range(4) for name in kinds]
        answered = await asyncio.gather(*(ask(*one) for one in asked))
    for (name, _), status in zip(asked, answered, strict=True):
        assert status == (500 if name in FAULTS else 200)
    server.wait_until_idle()
