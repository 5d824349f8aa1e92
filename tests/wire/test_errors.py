"""What cannot be done is a 400 in OpenAI's shape that names the field, before any work."""

from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.server.served import Served
from tests.server.wire import BEST_OF_N, BLOCKWISE, PROMPT, Ask, chat, complete

ROUTES = pytest.mark.parametrize("ask", [complete, chat])
HUGE = "x" * 100_000

POLICIES: dict[str, tuple[Any, str, list[str]]] = {
    # name: (policy, the error's param, what its message says)
    "a number": (7, "alignment", ["7", "preset", "method"]),
    "a list": ([BLOCKWISE], "alignment", ["preset", "method"]),
    "no method": ({"k": 4, "m": 32}, "alignment.method", ["None", "best_of_n", "blockwise_cd"]),
    "another method": ({"method": "beam"}, "alignment.method", ["'beam'", "none", "best_of_n"]),
    "another preset": ("unsafe", "alignment", ["'unsafe'", "'safe'", "'best-of-4'"]),
    "a key in capitals": ({"method": "best_of_n", "N": 4}, "alignment.N", ["did you mean n"]),
    "another key": (
        {**BLOCKWISE, "kk": 4},
        "alignment.kk",
        ["kk", "k, kl_budget, lookahead, m, method"],
    ),
    "a key beside none": ({"method": "none", "k": 4}, "alignment.k", ["k", "none"]),
    "no k": ({"method": "blockwise_cd", "m": 32}, "alignment.k", ["missing"]),
    "k = 0": ({**BLOCKWISE, "k": 0}, "alignment.k", ["0", "at least 1"]),
    "k above the limit": ({**BLOCKWISE, "k": 9}, "alignment.k", ["9", "1 to 8"]),
    "k of another type": ({**BLOCKWISE, "k": "many"}, "alignment.k", ["'many'", "integer"]),
    "m = 0": ({**BLOCKWISE, "m": 0}, "alignment.m", ["0", "at least 1"]),
    "n = 0": ({**BEST_OF_N, "n": 0}, "alignment.n", ["0", "at least 1"]),
    "n above the limit": ({**BEST_OF_N, "n": 17}, "alignment.n", ["17", "1 to 16"]),
    "another reward": (
        {**BLOCKWISE, "rewards": {"safety": 1}},
        "alignment.rewards",
        ["'safety'", "sentiment", "brevity"],
    ),
    "no rewards": ({**BLOCKWISE, "rewards": {}}, "alignment.rewards", ["{}", "at least 1"]),
    "a weight of another type": (
        {**BLOCKWISE, "rewards": {"sentiment": "much"}},
        "alignment.rewards.sentiment",
        ["'much'", "number"],
    ),
    "a weight beyond all use": (
        {**BLOCKWISE, "rewards": {"sentiment": 1e7}},
        "alignment.rewards.sentiment",
        ["10000000.0"],
    ),
    "a reward of finished texts": (
        {**BLOCKWISE, "rewards": {"sentiment_gold": 1}},
        "alignment.rewards.sentiment_gold",
        ["sentiment_gold", "finished", "blockwise_cd", "best_of_n"],
    ),
    "another selection": (
        {**BLOCKWISE, "selection": "best"},
        "alignment.selection",
        ["'best'", "argmax", "softmax"],
    ),
    "softmax of 0": (
        {**BLOCKWISE, "selection": {"softmax": 0}},
        "alignment.selection",
        ["0", "argmax", "> 0"],
    ),
    "another report": ({**BLOCKWISE, "report": "all"}, "alignment.report", ["'all'", "'trace'"]),
}

COMBINATIONS: dict[str, tuple[Any, dict[str, Any], str, list[str]]] = {
    # name: (policy, the request's other fields, the error's param, what its message says)
    "best_of_n, beam search": (
        *(BEST_OF_N, {"use_beam_search": True}),
        *("use_beam_search", ["use_beam_search", "best_of_n"]),
    ),
    "blockwise, beam search": (
        *(BLOCKWISE, {"use_beam_search": True}),
        *("use_beam_search", ["use_beam_search", "blockwise_cd"]),
    ),
    "blockwise, presence penalty": (
        *(BLOCKWISE, {"presence_penalty": 0.5}),
        *("presence_penalty", ["0.5", "blockwise_cd", "repetition_penalty"]),
    ),
    "blockwise, frequency penalty": (
        *(BLOCKWISE, {"frequency_penalty": -0.5}),
        *("frequency_penalty", ["-0.5", "blockwise_cd", "repetition_penalty"]),
    ),
    "blockwise, bad words": (
        *(BLOCKWISE, {"bad_words": ["awful"]}),
        *("bad_words", ["awful", "blockwise_cd"]),
    ),
    "best_of_n, temperature 0": (
        *(BEST_OF_N, {"temperature": 0}),
        *("temperature", ["0", "best_of_n", "same", "sampling"]),
    ),
    "blockwise, temperature 0": (
        *(BLOCKWISE, {"temperature": 0}),
        *("temperature", ["0", "blockwise_cd", "same", "sampling"]),
    ),
    "a preset's model and a policy": (
        *(BEST_OF_N, {"model": "demo:safe"}),
        *("alignment", ["demo:safe", "'demo'"]),
    ),
    "too many candidate tokens": (
        *({"method": "best_of_n", "n": 16}, {"max_tokens": 600}),
        *("max_tokens", ["600", "16", "9600", "8192"]),
    ),
    "too many with the choices": (
        *(BLOCKWISE, {"max_tokens": 600, "n": 4}),
        *("max_tokens", ["600", "4", "9600", "8192"]),
    ),
    "cdserve's own key": (
        *(None, {"vllm_xargs": {"cdserve": "x"}}),
        *("vllm_xargs.cdserve", ["reserved", "alignment"]),
    ),
    "cdserve's own key beside a policy": (
        *(BLOCKWISE, {"vllm_xargs": {"cdserve": "x"}}),
        *("vllm_xargs.cdserve", ["reserved", "alignment"]),
    ),
}


def check(error: openai.APIStatusError, param: str, says: list[str]) -> None:
    """Asserts OpenAI's shape, the field's name, and the message's parts."""
    assert isinstance(error, openai.BadRequestError)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.body["param"] == param
    assert error.body["code"] == 400
    for part in says:
        assert part in error.body["message"]


@pytest.mark.parametrize(("policy", "param", "says"), POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("stream", [False, True])
@ROUTES
def test_invalid_policy_is_refused_by_its_field(
    client: OpenAI, ask: Ask, stream: bool, policy: Any, param: str, says: list[str]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, policy, stream=stream)
    check(caught.value, param, says)


@pytest.mark.parametrize(
    ("policy", "fields", "param", "says"), COMBINATIONS.values(), ids=COMBINATIONS
)
@pytest.mark.parametrize("stream", [False, True])
@ROUTES
def test_fields_in_conflict_with_a_policy_are_refused(
    client: OpenAI,
    ask: Ask,
    stream: bool,
    policy: Any,
    fields: dict[str, Any],
    param: str,
    says: list[str],
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, policy, stream=stream, **fields)
    check(caught.value, param, says)


@pytest.mark.parametrize("field", ["alignement", "Alignment", "alignment_policy"])
@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("completions", {"prompt": PROMPT}),
        ("chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}),
        ("responses", {"input": PROMPT}),
        ("messages", {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4}),
    ],
)
def test_misspelt_alignment_is_refused_by_its_name(
    http: httpx2.Client, route: str, body: dict[str, Any], field: str
) -> None:
    answer = http.post(f"/v1/{route}", json={"model": "demo", **body, field: BEST_OF_N})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message == f"{field} is not known; did you mean alignment"


def test_several_prompts_count_as_candidate_tokens(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, BLOCKWISE, prompt=[PROMPT] * 5, max_tokens=500)
    check(caught.value, "max_tokens", ["500", "10000", "8192"])


def test_length_error_names_the_field_of_the_request(client: OpenAI) -> None:
    sent = {"max_tokens": None, "max_completion_tokens": 600}
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, {"method": "best_of_n", "n": 16}, **sent)
    check(caught.value, "max_completion_tokens", ["600", "16", "9600", "8192"])


def test_policy_with_one_candidate_accepts_temperature_zero(client: OpenAI) -> None:
    policy = {"method": "best_of_n", "n": 1}
    answer = complete(client, policy, temperature=0)
    assert answer.choices == complete(client, temperature=0).choices


def test_errors_of_vllm_are_unchanged(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, BLOCKWISE, max_tokens=5000)
    check(caught.value, "max_tokens", ["5000", "2048"])


@pytest.mark.parametrize("policy", [None, BLOCKWISE])
def test_unknown_model_is_a_404(client: OpenAI, policy: dict[str, Any] | None) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        complete(client, policy, model="demo:unknown")
    assert caught.value.body["param"] == "model"
    assert "demo:unknown" in caught.value.body["message"]


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("body", ["{", "[1]", '"text"', ""])
def test_body_that_is_not_an_object_is_refused(http: httpx2.Client, route: str, body: str) -> None:
    answer = http.post(route, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "policy",
    [
        HUGE,
        {"method": HUGE},
        {**BLOCKWISE, "k": HUGE},
        {**BLOCKWISE, HUGE: 1},
        {"method": "none", HUGE: 1},
        {**BLOCKWISE, "rewards": {HUGE: 1}},
        {**BLOCKWISE, "rewards": {HUGE: "a"}},
        {**BLOCKWISE, "selection": {HUGE: 1}},
        {**BLOCKWISE, "k": 10**4000},
    ],
    ids=["preset", "method", "k", "key", "none", "reward", "weight", "selection", "digits"],
)
def test_error_does_not_repeat_a_huge_value(http: httpx2.Client, policy: Any) -> None:
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 8, "alignment": policy}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert len(answer.text) < 2000


def test_error_comes_before_any_work(client: OpenAI, server: Served) -> None:
    before = server.metric("prompt_tokens_total")
    with pytest.raises(openai.BadRequestError):
        complete(client, {**BLOCKWISE, "k": 9}, stream=True)
    with pytest.raises(openai.BadRequestError):
        complete(client, BLOCKWISE, prompt=[PROMPT, PROMPT], temperature=0)
    assert server.metric("prompt_tokens_total") == before


class TestFailedReward:
    POLICY = {"method": "best_of_n", "n": 4, "rewards": {"broken": 1.0}}  # noqa: RUF012

    @ROUTES
    def test_failed_reward_is_a_500_that_names_the_reward(self, client: OpenAI, ask: Ask) -> None:
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client, self.POLICY)
        assert set(caught.value.body) == {"message", "type", "param", "code"}
        assert "broken" in caught.value.body["message"]

    @ROUTES
    def test_failed_reward_ends_a_stream_with_an_error(self, client: OpenAI, ask: Ask) -> None:
        with pytest.raises(openai.APIError, match="broken"):
            list(ask(client, self.POLICY, stream=True))

    def test_failed_reward_leaves_the_connection_open(self, http: httpx2.Client) -> None:
        body = {"model": "demo", "prompt": PROMPT, "max_tokens": 4, "alignment": self.POLICY}
        answers = [http.post("/v1/completions", json=body) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [500] * 3

    def test_failed_reward_leaves_no_engine_request(self, client: OpenAI, server: Served) -> None:
        with pytest.raises(openai.InternalServerError):
            complete(client, self.POLICY)
        server.wait_until_idle()
