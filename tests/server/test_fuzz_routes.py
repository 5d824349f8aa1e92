"""Any policy by any route, streamed or not, two at once under one id: answered or refused.

``FUZZ_EXAMPLES=2000`` is how many pairs are made; a third of 150 without it.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .generated import encoded, fields, policies, sampling
from .served import Served
from .wire import PROMPT, events

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150")) // 3
TALK = [{"role": "user", "content": PROMPT}]
STOPS = st.sampled_from([["."], [" the", "."], ["\n"]])
STREAMED = {"stream": st.booleans()}
SAMPLED = {name: sampling[name] for name in ("temperature", "top_p", "seed", "stop", "min_tokens")}
LOGPROBS = {"logprobs": st.booleans(), "top_logprobs": st.integers(0, 3)}
ROUTES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "/v1/completions": (
        {
            "prompt": st.sampled_from([PROMPT, [PROMPT, "A film."]]),
            "max_tokens": st.integers(1, 12),
        },
        {**sampling, **STREAMED, "prompt_logprobs": st.integers(0, 2)},
    ),
    "/v1/chat/completions": (
        {"messages": st.just(TALK), "max_tokens": st.integers(1, 12)},
        {**SAMPLED, **LOGPROBS, **STREAMED, "n": st.integers(1, 3)},
    ),
    "/v1/chat/completions/batch": (
        {"messages": st.sampled_from([[TALK], [TALK, TALK]]), "max_tokens": st.integers(1, 12)},
        {**SAMPLED, **LOGPROBS},
    ),
    "/v1/responses": (
        {"input": st.just(PROMPT), "max_output_tokens": st.integers(1, 12)},
        {"temperature": sampling["temperature"], "top_logprobs": st.integers(0, 3), **STREAMED},
    ),
    "/v1/messages": (
        {"messages": st.just(TALK), "max_tokens": st.integers(1, 12)},
        {"temperature": sampling["temperature"], "stop_sequences": STOPS, **STREAMED},
    ),
}


def bodies(route: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """Bodies of a route, beside it."""
    required, optional = ROUTES[route]
    needed = {"model": st.just("demo"), "alignment": policies, **required}
    return st.tuples(st.just(route), fields(needed, optional))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    pair=st.sampled_from(sorted(ROUTES)).flatmap(
        lambda route: st.lists(bodies(route), min_size=2, max_size=2)
    ),
    shared=st.uuids().map(str),
)
def test_concurrent_requests_with_one_id_are_each_followed_or_refused(
    http: httpx2.Client, pair: list[tuple[str, dict[str, Any]]], shared: str
) -> None:
    headers = {"content-type": "application/json", "x-request-id": shared}
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(
            lambda one: http.post(one[0], content=encoded(one[1]), headers=headers), pair
        )
        for (route, body), answer in zip(pair, list(answers), strict=True):
            check(route, body, answer)


def test_server_is_healthy_after_random_requests_to_all_routes(
    server: Served, http: httpx2.Client
) -> None:
    assert http.get("/health").status_code == 200
    server.wait_until_idle()
    server.wait_for_sample("cdserve_running_candidates", 0)
    server.wait_for_sample("cdserve_waiting_candidates", 0)


def check(route: str, body: dict[str, Any], answer: httpx2.Response) -> None:
    """Asserts that a request was answered to its end, or refused with a reason."""
    told = (answer.status_code, answer.text[-500:], route, body)
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, told
        assert answer.json()["error"]["message"]
    elif answer.headers["content-type"].startswith("text/event-stream"):
        # A prompt that is found too long only in the engine is refused in the stream.
        wrong = [one["error"] for one in events(answer.text.splitlines()) if one.get("error")]
        assert all(error.get("code") == 400 for error in wrong), told
    else:
        assert "error" not in answer.json() or answer.json()["error"] is None, told
