"""Requests with temperature 0 under policies that have sampling parameters."""

from typing import Any

import httpx2
import pytest
from openai import OpenAI
from pydantic import TypeAdapter

from cdserve.report import Report
from tests.server.wire import BEST_OF_N, BLOCKWISE, complete, joined

MODEL = "demo:blockwise"
TALK = [{"role": "user", "content": "Please write a review of the travel lawn mower."}]
ROUTES: dict[str, tuple[str, dict[str, Any], str]] = {
    # name: (path, the body, the field that holds the texts)
    "completions": ("/v1/completions", {"prompt": "Review: ", "max_tokens": 48}, "choices"),
    "chat": ("/v1/chat/completions", {"messages": TALK, "max_tokens": 48}, "choices"),
    "batch": (
        *("/v1/chat/completions/batch", {"messages": [TALK, TALK], "max_tokens": 48}),
        "choices",
    ),
    "responses": ("/v1/responses", {"input": "Review: ", "max_output_tokens": 48}, "output"),
    "messages": ("/v1/messages", {"messages": TALK, "max_tokens": 48}, "content"),
}
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.01}
SEARCHES = pytest.mark.parametrize("policy", [BEST_OF_N, BLOCKWISE], ids=lambda p: p["method"])


def greedy(client: OpenAI, policy: dict[str, Any], **fields: Any) -> Any:
    """A completion at temperature 0 under a policy with ``SAMPLING``."""
    return complete(client, {**policy, "sampling": SAMPLING}, temperature=0, **fields)


@pytest.mark.parametrize("route", ROUTES)
def test_equal_requests_at_temperature_zero_have_equal_answers(
    http: httpx2.Client, route: str
) -> None:
    path, body, texts = ROUTES[route]
    sent = {"model": MODEL, "temperature": 0, **body}
    first, second = (http.post(path, json=sent).raise_for_status().json() for _ in range(2))
    assert _without_ids(first[texts]) == _without_ids(second[texts])
    assert first["alignment"] == second["alignment"]
    used = {"temperature": 1.0, "top_p": 1.0, "top_k": None, "min_p": 0.0, "seed": 0}
    assert first["alignment"]["sampling"] == used
    assert first["alignment"]["candidates"] >= 4


@SEARCHES
def test_policy_sampling_at_temperature_zero_equals_the_same_sampling_in_the_request(
    client: OpenAI, policy: dict[str, Any]
) -> None:
    replaced = greedy(client, policy, seed=None)
    own = complete(client, policy, seed=0, **SAMPLING)
    assert replaced.choices == own.choices
    assert replaced.alignment.pop("sampling") == {**SAMPLING, "seed": 0}
    assert replaced.alignment == own.alignment


def test_seed_of_the_request_is_used_with_policy_sampling(client: OpenAI) -> None:
    replaced = greedy(client, BEST_OF_N, seed=11)
    assert replaced.choices == complete(client, BEST_OF_N, seed=11, **SAMPLING).choices
    assert replaced.alignment["sampling"]["seed"] == 11


def test_policy_sampling_replaces_the_truncation_of_the_request(client: OpenAI) -> None:
    cut = {"top_p": 0.5, "top_k": 3, "min_p": 0.5}
    assert greedy(client, BEST_OF_N, **cut).choices == greedy(client, BEST_OF_N).choices


def test_policy_sampling_keeps_the_other_fields_of_the_request(client: OpenAI) -> None:
    fields = {"max_tokens": 20, "logprobs": 0, "stop": ["."], "min_tokens": 4}
    own = complete(client, BEST_OF_N, seed=0, **SAMPLING, **fields)
    assert greedy(client, BEST_OF_N, seed=None, **fields).choices == own.choices


def test_several_choices_at_temperature_zero_differ_and_report_the_sampling(
    client: OpenAI,
) -> None:
    answer = greedy(client, BEST_OF_N, n=2, seed=None)
    assert len({choice.text for choice in answer.choices}) == 2
    reports = [answer.alignment, *answer.alignment["choices"]]
    assert [report["sampling"] for report in reports] == [{**SAMPLING, "seed": 0}] * 3
    TypeAdapter(Report).validate_python(answer.alignment, strict=True)


@SEARCHES
def test_stream_at_temperature_zero_equals_the_whole_answer(
    client: OpenAI, policy: dict[str, Any]
) -> None:
    whole, chunks = greedy(client, policy), list(greedy(client, policy, stream=True))
    assert joined(chunks) == whole.choices[0].text
    assert chunks[-1].alignment["sampling"] == whole.alignment["sampling"]


@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_temperature_above_zero_is_used_in_place_of_policy_sampling(
    client: OpenAI, temperature: float
) -> None:
    policy = {**BEST_OF_N, "sampling": SAMPLING}
    answer = complete(client, policy, temperature=temperature)
    assert answer.choices == complete(client, BEST_OF_N, temperature=temperature).choices
    assert "sampling" not in answer.alignment


@pytest.mark.parametrize(
    "policy",
    [{"method": "best_of_n", "n": 1}, {"method": "blockwise_cd", "k": 1, "m": 16}],
    ids=lambda policy: policy["method"],
)
def test_one_candidate_at_temperature_zero_is_greedy_despite_policy_sampling(
    client: OpenAI, policy: dict[str, Any]
) -> None:
    answer = greedy(client, policy)
    assert answer.choices == complete(client, temperature=0).choices
    assert "sampling" not in answer.alignment


def test_presets_of_the_description_have_their_sampling(http: httpx2.Client) -> None:
    presets = http.get("/v1/alignment").json()["presets"]
    sampling = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0}
    assert presets["blockwise"]["sampling"] == presets["best-of-8"]["sampling"] == sampling


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items() if key != "id"}
    return [_without_ids(item) for item in value] if isinstance(value, list) else value
