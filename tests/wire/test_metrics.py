"""cdserve's metrics: what they count is what the answers say."""

import asyncio
import re
from collections import defaultdict
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from tests.conftest import LIMITS
from tests.server.served import Served
from tests.server.wire import BEST_OF_N, BLOCKWISE, complete
from tests.waiting import until

LINE = re.compile(r"(cdserve_\w+)(?:\{(.*)\})? ([-+\d.e]+)")


def read(http: httpx2.Client) -> dict[tuple[str, str], float]:
    """Every sample by name and labels."""
    lines = http.get("/metrics").text.splitlines()
    found = (LINE.fullmatch(line) for line in lines)
    return {(one[1], one[2] or ""): float(one[3]) for one in found if one}


def changes(http: httpx2.Client, before: dict[tuple[str, str], float]) -> dict[str, dict[str, Any]]:
    """What grew, by name and labels."""
    grown: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for (name, labels), value in read(http).items():
        if value != before.get((name, labels), 0.0):
            grown[name][labels] = value - before.get((name, labels), 0.0)
    return grown


def test_metrics_add_up_to_the_reports(client: OpenAI, http: httpx2.Client) -> None:
    before = read(http)
    answers = [complete(client, {**BLOCKWISE, "kl_budget": 1.0}, seed=i) for i in range(3)]
    grown = changes(http, before)
    of = 'method="blockwise_cd"'
    reports = [answer.alignment for answer in answers]
    for name in ("decisions", "candidates", "candidate_tokens", "ties"):
        total = sum(report[name] for report in reports)
        assert grown[f"cdserve_{name}_total"].get(of, 0) == total
    taken = sum(answer.usage.completion_tokens for answer in answers)
    drawn = grown["cdserve_candidate_tokens_total"][of]
    assert grown["cdserve_discarded_tokens_total"][of] == drawn - taken
    limited = sum(report["kl"]["limited"]["decisions"] for report in reports)
    assert grown["cdserve_budget_limited_decisions_total"].get(of, 0) == limited > 0
    bounds = sum(report["kl"]["bound"] for report in reports)
    assert grown["cdserve_kl_bound_nats_sum"][of] == pytest.approx(bounds)
    assert grown["cdserve_kl_bound_nats_count"][of] == 3
    assert grown["cdserve_score_count"][of] == 3
    assert sum(grown["cdserve_responses_total"].values()) == 3
    assert grown["cdserve_time_to_first_block_seconds_count"][of] == 3


def test_every_outcome_is_counted(server: Served, client: OpenAI, http: httpx2.Client) -> None:
    before = read(http)
    complete(client, BEST_OF_N, n=2, max_tokens=8, ignore_eos=True)
    body = {"model": "demo", "prompt": "A review.", "max_tokens": 16}
    broken = {**BEST_OF_N, "rewards": {"broken": 1}}
    assert http.post("/v1/completions", json={**body, "alignment": broken}).status_code == 500
    unknown = {**BEST_OF_N, "n": 0}
    assert http.post("/v1/completions", json={**body, "alignment": unknown}).status_code == 400
    held = {**BEST_OF_N, "rewards": {"gate": 1}}
    asyncio.run(_given_up(server, {**body, "alignment": held}))
    of = 'method="best_of_n",outcome='
    responses = "cdserve_responses_total"
    until(lambda: f'{of}"cancelled"' in changes(http, before)[responses], "its end")
    grown = changes(http, before)
    assert grown[responses] == {
        f'{of}"length"': 2.0,
        f'{of}"error"': 1.0,
        f'{of}"cancelled"': 1.0,
    }
    assert grown["cdserve_refused_total"] == {'reason="invalid"': 1.0}
    assert grown["cdserve_reward_failures_total"] == {'on_failure="error",reward="broken"': 1.0}


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ("unheard-of", "invalid"),
        ({**BEST_OF_N, "m": 4}, "invalid"),
        ({**BEST_OF_N, "rewards": {"unheard-of": 1}}, "invalid"),
        ({**BEST_OF_N, "n": LIMITS["max_n"] + 1}, "limit"),
        ({**BLOCKWISE, "k": 4, "beam_width": 4}, "limit"),
        ({"method": "best_of_poisson", "mu": 16}, "limit"),
        ({"method": "logit_mixing", "weights": {"base": 2, "tuned": -1}}, "limit"),
        ({**BLOCKWISE, "rewards": {"json": 1}}, "combination"),
        ({"method": "tokenwise_cd", "beta": 1, "rewards": {"brevity": 1}}, "combination"),
    ],
)
def test_refused_policies_are_counted_by_reason(
    http: httpx2.Client, policy: Any, reason: str
) -> None:
    check_refusal(http, {"alignment": policy}, reason)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"temperature": 0}, "combination"),
        ({"use_beam_search": True}, "combination"),
        ({"presence_penalty": 1}, "combination"),
        ({"model": "demo:safe"}, "combination"),
        ({"alignement": {}}, "invalid"),
        ({"max_tokens": 512, "n": 8}, "limit"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_refused_fields_are_counted_by_reason(
    http: httpx2.Client, fields: dict[str, Any], reason: str
) -> None:
    check_refusal(http, {"alignment": BLOCKWISE, **fields}, reason)


def check_refusal(http: httpx2.Client, fields: dict[str, Any], reason: str) -> None:
    """Asserts a 400 that is counted under the reason."""
    before = read(http)
    body = {"model": "demo", "prompt": "A review.", "max_tokens": 16, **fields}
    assert http.post("/v1/completions", json=body).status_code == 400
    assert changes(http, before)["cdserve_refused_total"] == {f'reason="{reason}"': 1.0}


async def _given_up(server: Served, body: dict[str, Any]) -> None:
    async with server.async_client() as http:
        with server.gate.closed():
            request = asyncio.create_task(http.post("/v1/completions", json=body))
            await asyncio.to_thread(server.gate.until_wait, 1)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)


def test_info_metrics_name_rewards_and_members(http: httpx2.Client) -> None:
    samples = read(http)
    assert samples["cdserve_reward_info", 'kind="value_head",reward="sentiment"'] == 1
    assert samples["cdserve_member_info", 'member="tuned"'] == 1
