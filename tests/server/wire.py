"""What goes over the wire in these tests: policies, requests, and how answers are read."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from cdserve import kl

PROMPT = "Review: travel lawn mower (garden)."

BEST_OF_N = {"method": "best_of_n", "n": 4}
BLOCKWISE = {"method": "blockwise_cd", "k": 4, "m": 16}
STEPS = {**BLOCKWISE, "k": 2, "until": ["."]}
AHEAD = {**BLOCKWISE, "k": 2, "rewards": {"sentiment_gold": 1.0}, "lookahead": 32}
TILT = {"method": "tokenwise_cd", "beta": 0.5}
KINDS: dict[str, dict[str, Any]] = {
    "best_of_n": BEST_OF_N,
    "blockwise": BLOCKWISE,
    "beams": {**BLOCKWISE, "k": 2, "beam_width": 2},
    "tokenwise": TILT,
    "mixing": {"method": "logit_mixing", "weights": {"base": 0.5, "tuned": 0.5}},
    "over a tilt": {**BLOCKWISE, "proposal": TILT},
    "likelihood": {**BEST_OF_N, "rewards": {"fluent": 1.0}},
    "speculative": {"method": "speculative_rejection", "n": 4, "m": 16},
}
"""A policy of each kind that is served in a way of its own."""

Ask = Callable[..., Any]


def complete(client: OpenAI, policy: Any = None, **fields: Any) -> Any:
    """A completion, token ids included; fields that only vLLM has go in beside OpenAI's."""
    request = {"model": "demo", "prompt": PROMPT, "max_tokens": 48, "seed": 7}
    return client.completions.create(**_split(request | fields, policy))


def chat(client: OpenAI, policy: Any = None, **fields: Any) -> Any:
    """As ``complete``, a chat turn."""
    messages = [{"role": "user", "content": "Please write a review of the travel lawn mower."}]
    request = {"model": "demo", "messages": messages, "max_tokens": 48, "seed": 7}
    return client.chat.completions.create(**_split(request | fields, policy))


def of_seeds(
    client: OpenAI, seeds: Iterable[int | None], policy: Any = None, **fields: Any
) -> list[Any]:
    """A completion of each seed, all asked for at once."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda seed: complete(client, policy, seed=seed, **fields), seeds))


def text_of(choice: Any) -> str:
    """A choice's text: of a completion or a chat turn, whole or a chunk."""
    for holder in ("message", "delta"):
        if hasattr(choice, holder):
            return getattr(choice, holder).content or ""
    return choice.text


def joined(chunks: Iterable[Any], index: int = 0) -> str:
    """The text of one choice of a stream."""
    return "".join(text_of(c) for chunk in chunks for c in chunk.choices if c.index == index)


def check_report(report: dict[str, Any], policy: dict[str, Any], tokens: int) -> None:
    """Asserts the report's shape, and its counts for a response of ``tokens`` tokens."""
    decisions = math.ceil(tokens / policy["m"]) if "m" in policy else 1
    width = policy["k"] if "k" in policy else policy["n"]
    assert {name: type(value) for name, value in report.items()} == {
        "method": str,
        "score": float,
        "rewards": dict,
        "scores": dict,
        "decisions": int,
        "candidates": int,
        "candidate_tokens": int,
        "ties": int,
        "kl": dict,
        **({"ends": dict} if "m" in policy else {}),
    }
    assert report["method"] == policy["method"]
    assert set(report["rewards"]) == set(policy.get("rewards", {"sentiment": 1.0}))
    assert set(report["scores"]) == {"mean", "max", "min"}
    assert report["scores"]["min"] <= report["scores"]["mean"] <= report["scores"]["max"]
    assert report["scores"]["min"] <= report["score"] <= report["scores"]["max"]
    assert report["decisions"] == decisions
    assert report["candidates"] == width * decisions
    assert report["candidate_tokens"] >= tokens
    assert 0 <= report["ties"] <= decisions
    if "m" in policy:
        ends = report["ends"]
        assert 0 <= ends["selected"] <= ends["decisions"] <= decisions
        assert ends["candidates"] == width * ends["decisions"]
        assert ends["decisions"] <= ends["ended"] <= ends["candidates"]
    assert set(report["kl"]) == {"bound", "estimate", "estimator", "flag"}
    assert math.isclose(report["kl"]["bound"], decisions * (math.log(width) - (width - 1) / width))
    assert 0 <= report["kl"]["estimate"] <= report["kl"]["bound"] + 1e-9
    assert report["kl"]["flag"] == kl.flag(report["kl"]["bound"])


def assert_close(ours: Any, theirs: Any, where: str = "") -> None:
    """Asserts that two reports say the same, but for the last digits of numbers."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for name, value in ours.items():
            assert_close(value, theirs[name], f"{where}.{name}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_close(one, other, f"{where}[{i}]")
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4), where
    else:
        assert ours == theirs, where


def check_refused(client: OpenAI, policy: Any, param: str, words: Sequence[str]) -> None:
    """Asserts a 400 that names the field and says all the words."""
    with pytest.raises(BadRequestError) as caught:
        complete(client, policy)
    assert caught.value.param == param
    assert all(word in caught.value.message for word in words), caught.value.message


def events(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The JSON objects of a raw event stream."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
    return [json.loads(line) for line in data]


def blocks(token_ids: Sequence[int], m: int) -> list[Sequence[int]]:
    """Tokens cut into the blocks they were decided in."""
    return [token_ids[start : start + m] for start in range(0, len(token_ids), m)]


def _split(request: dict[str, Any], policy: Any) -> dict[str, Any]:
    """OpenAI's own fields as arguments, all others as ``extra_body``."""
    openai = {
        *("model", "prompt", "messages", "max_tokens", "max_completion_tokens", "seed", "n"),
        *("temperature", "top_p", "stop", "stream", "stream_options", "echo", "logprobs"),
        *("top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty"),
    }
    extra: dict[str, Any] = {"return_token_ids": True} | {
        name: value for name, value in request.items() if name not in openai
    }
    if policy is not None:
        extra["alignment"] = policy
    return {n: v for n, v in request.items() if n in openai} | {"extra_body": extra}
