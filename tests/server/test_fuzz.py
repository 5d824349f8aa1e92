"""Whatever is sent, the answer is a good one or says what is wrong; the server stays well.

``FUZZ_EXAMPLES=2000`` is how many bodies are made; 150 without it.
"""

import json
import os
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings

from .generated import bodies, encoded
from .served import Served

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
JSON = {"content-type": "application/json"}


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(body=bodies)
def test_policy_is_followed_or_refused(http: httpx2.Client, body: dict[str, Any]) -> None:
    answer = http.post("/v1/completions", content=encoded(body), headers=JSON)
    check(answer, body)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"model": "demo", "prompt": "x", "alignment": ' + b"[" * 100_000,
        b'{"model": "demo", "prompt": "x", "alignment": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"model": "demo", "prompt": "x", "alignment": {"method": "best_of_n", "n": 1e999}}',
        b'{"model": "demo", "prompt": "x", "alignment": {"method": "best_of_n", "n": NaN}}',
        b'{"model": "demo", "prompt": "x", "alignment": {"n": 2, "n": "x", "method": "best_of_n"}}',
    ],
)
@pytest.mark.parametrize(
    "route", ["/v1/completions", "/v1/alignment/score", "/v1/responses", "/v1/messages"]
)
def test_malformed_request_is_refused(http: httpx2.Client, route: str, content: bytes) -> None:
    answer = http.post(route, content=content, headers=JSON)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]


def test_server_is_healthy_after_random_requests(server: Served, http: httpx2.Client) -> None:
    assert http.get("/health").status_code == 200
    server.wait_until_idle()
    assert server.sample("cdserve_running_candidates") == 0
    assert server.sample("cdserve_waiting_candidates") == 0


def check(answer: httpx2.Response, body: dict[str, Any]) -> None:
    said = answer.json()
    if answer.status_code == 200:
        policy = body["alignment"]
        reported = isinstance(policy, str) or (
            isinstance(policy, dict)
            and policy["method"] != "none"
            and policy.get("report") != "none"
        )
        if reported:
            report = said["alignment"]
            assert report["kl"]["bound"] >= -1e-6
            assert report["candidates"] >= report["decisions"] >= 1
            json.dumps(report, allow_nan=False)
        return
    # A reward of finished texts fails on none of these; a 5xx would be nobody's declared failure.
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:500], body)
    assert said["error"]["message"]
    if "alignment" in (said["error"]["param"] or ""):
        assert said["error"]["type"] == "BadRequestError"
