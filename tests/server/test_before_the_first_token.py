"""Answers whose deadline passes before their first token, and what was asked of the prompt."""

from typing import Any

import httpx2
import pytest

from .wire import BEST_OF_N, KINDS, PROMPT, events

TALK = [{"role": "user", "content": PROMPT}]
policies = pytest.mark.parametrize("policy", KINDS.values(), ids=KINDS)
streams = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def hurried(policy: dict[str, Any]) -> dict[str, Any]:
    """The policy with a deadline that passes while the prompt is being read."""
    return {**policy, "deadline_ms": 1}


def complete(http: httpx2.Client, policy: Any, **fields: Any) -> dict[int, dict[str, Any]]:
    """The choices of a completion by index; a stream's put together."""
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": 16, "seed": 103, "alignment": policy}
    answer = http.post("/v1/completions", json=body | fields).raise_for_status()
    if not fields.get("stream"):
        return {choice["index"]: choice for choice in answer.json()["choices"]}
    made: dict[int, dict[str, Any]] = {}
    for chunk in events(answer.text.splitlines()):
        assert "error" not in chunk, chunk
        for choice in chunk["choices"]:
            one = made.setdefault(choice["index"], {"text": "", "logprobs": None})
            one["text"] += choice["text"]
            one["finish_reason"] = choice["finish_reason"]
            for name, items in (choice["logprobs"] or {}).items():
                one["logprobs"] = one["logprobs"] or {}
                one["logprobs"].setdefault(name, []).extend(items)
    return made


def echoed(http: httpx2.Client) -> dict[str, Any]:
    """The prompt with its log-probabilities, as vLLM gives them without a policy."""
    made = complete(http, None, echo=True, logprobs=1, max_tokens=1)
    return {name: items[:-1] for name, items in made[0]["logprobs"].items()}


@policies
@streams
@pytest.mark.parametrize("top", [0, 1])
@pytest.mark.parametrize(("prompt", "n"), [(PROMPT, 1), ([PROMPT, PROMPT], 2)], ids=["1", "2x2"])
def test_log_probabilities_of_no_token_are_empty(
    http: httpx2.Client, policy: dict[str, Any], stream: bool, prompt: Any, n: int, top: int
) -> None:
    fields = {"logprobs": top, "max_tokens": 500, "stream": stream, "prompt": prompt, "n": n}
    made = complete(http, hurried(policy), **fields)
    assert len(made) == n * (2 if isinstance(prompt, list) else 1)
    for choice in made.values():
        assert choice["finish_reason"] == "length"
        found = choice["logprobs"]
        assert {len(items) for items in found.values()} == {len(found["tokens"])}
        assert "".join(found["tokens"]) == choice["text"]


@policies
@streams
def test_echoed_prompt_has_its_log_probabilities(
    http: httpx2.Client, policy: dict[str, Any], stream: bool
) -> None:
    expected = echoed(http)
    fields = {"echo": True, "logprobs": 1, "max_tokens": 500, "stream": stream, "n": 2}
    made = complete(http, hurried(policy), **fields)
    assert sorted(made) == [0, 1]
    for choice in made.values():
        assert choice["text"].startswith(PROMPT)
        found = choice["logprobs"]
        length = len(expected["tokens"])
        assert found["tokens"][:length] == expected["tokens"]
        assert found["token_logprobs"][1:length] == pytest.approx(
            expected["token_logprobs"][1:], abs=1e-3
        )


@policies
@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_prompt_logprobs_are_those_of_a_plain_request(
    http: httpx2.Client, policy: dict[str, Any], route: str
) -> None:
    prompt = {"prompt": PROMPT} if route == "completions" else {"messages": TALK}
    body = {"model": "demo", **prompt, "max_tokens": 8, "prompt_logprobs": 2}

    def ask(policy: Any) -> list[Any]:
        answer = http.post(f"/v1/{route}", json={**body, "alignment": policy})
        made = answer.raise_for_status().json()
        holder = made["choices"][0] if route == "completions" else made
        return holder["prompt_logprobs"]

    plain = ask(None)
    for found in (ask(policy), ask(hurried(policy))):
        assert len(found) == len(plain)
        for ours, theirs in zip(found[1:], plain[1:], strict=True):
            assert {token: one["logprob"] for token, one in ours.items()} == pytest.approx(
                {token: one["logprob"] for token, one in theirs.items()}, abs=1e-3
            )


@policies
@pytest.mark.parametrize("top", [0, 2])
def test_chat_turn_without_a_token_has_empty_log_probabilities(
    http: httpx2.Client, policy: dict[str, Any], top: int
) -> None:
    body = {"model": "demo", "messages": TALK, "max_tokens": 500, "alignment": hurried(policy)}
    body |= {"logprobs": True, "top_logprobs": top}
    made = http.post("/v1/chat/completions", json=body).raise_for_status().json()["choices"][0]
    assert made["finish_reason"] == "length"
    tokens = [one["token"] for one in made["logprobs"]["content"] or []]
    assert "".join(tokens) == (made["message"]["content"] or "")
    answer = http.post("/v1/chat/completions", json=body | {"stream": True}).raise_for_status()
    chunks = events(answer.text.splitlines())
    (end,) = (c for chunk in chunks for c in chunk["choices"] if c["finish_reason"])
    assert end["finish_reason"] == "length"
    assert isinstance(end["logprobs"]["content"], list)


@policies
def test_response_cut_by_its_deadline_has_logprobs_of_its_text(
    http: httpx2.Client, policy: dict[str, Any]
) -> None:
    body = {"model": "demo", "input": PROMPT, "max_output_tokens": 500, "top_logprobs": 1}
    body |= {"include": ["message.output_text.logprobs"], "alignment": hurried(policy)}
    made = http.post("/v1/responses", json=body).raise_for_status().json()
    assert made["status"] == "incomplete"
    for part in (part for one in made["output"] for part in one["content"]):
        assert "".join(one["token"] for one in part["logprobs"] or []) == part["text"]
    assert made["alignment"]["deadline"] == {"ms": 1, "passed": True}


@pytest.mark.parametrize("policy", [None, *KINDS.values()], ids=["none", *KINDS])
def test_every_echoed_choice_of_a_stream_has_the_prompts_log_probabilities(
    http: httpx2.Client, policy: Any
) -> None:
    """A choice whose first chunk comes late has them too, and so has one that ends at once."""
    expected = echoed(http)
    fields = {"echo": True, "logprobs": 1, "n": 6, "stop": ["e", "y"]}
    made = complete(http, policy, **fields, stream=True)
    assert sorted(made) == list(range(6))
    for choice in made.values():
        assert choice["logprobs"]["tokens"][: len(expected["tokens"])] == expected["tokens"]
        assert choice["finish_reason"] in ("stop", "length")
    if policy is not None:
        whole = complete(http, policy, **fields)
        assert [made[i]["text"] for i in range(6)] == [whole[i]["text"] for i in range(6)]


def test_echo_without_new_tokens_returns_the_prompt(http: httpx2.Client) -> None:
    expected = echoed(http)
    made = complete(http, BEST_OF_N, echo=True, logprobs=1, max_tokens=0)
    assert made[0]["text"] == PROMPT
    assert made[0]["logprobs"]["tokens"] == expected["tokens"]


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
def test_final_chunk_without_a_token_has_the_fields_of_every_chunk(
    http: httpx2.Client, chat: bool
) -> None:
    route = "/v1/chat/completions" if chat else "/v1/completions"
    usage = {"include_usage": True, "continuous_usage_stats": True}
    body = {
        **{"model": "demo", "max_tokens": 500, "n": 2, "stream": True, "stream_options": usage},
        **({"messages": TALK, "logprobs": True} if chat else {"prompt": PROMPT, "logprobs": 0}),
        **{"return_token_ids": True, "alignment": hurried(BEST_OF_N)},
    }
    answer = http.post(route, json=body).raise_for_status()
    *chunks, last = events(answer.text.splitlines())
    assert len({chunk["created"] for chunk in (*chunks, last)}) == 1
    told = last["usage"]
    ends = [chunk for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert len(ends) == 2
    for end in ends:
        (choice,) = end["choices"]
        assert end["usage"]["prompt_tokens"] == told["prompt_tokens"]
        assert choice["stop_reason"] is None
        assert isinstance(choice["token_ids"], list)
        assert isinstance(choice["logprobs"]["content" if chat else "tokens"], list)
    if not chat:
        prompts = [c["prompt_token_ids"] for one in chunks for c in one["choices"]]
        assert {len(ids) for ids in prompts if ids} == {told["prompt_tokens"]}
