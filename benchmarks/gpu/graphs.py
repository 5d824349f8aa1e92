"""Part 3: the same requests with CUDA graphs and with `--enforce-eager` have the same answers.

A member's graph that was captured late, or an output that another graph wrote over, is off by nats
in some batch size: so requests come in batches of several sizes. A CPU has no graphs; there the
requests go one at a time the second time.
"""

import math
from collections.abc import Sequence
from typing import Any

from .answers import TOLERANCES, largest, unexpected
from .requests import MIX, MIXED_TILT, REWARDS, TEXTS, TILT, body, scored
from .served import Setup, at_once, demo, probe

BATCHES = {"cpu": [3], "cuda": [1, 2, 3, 8, 24, 60]}
POLICIES = [MIX, MIXED_TILT, "proxy", TILT, None]
TOKENS = {"cpu": 16, "cuda": 32}


def check(setup: Setup) -> dict[str, Any]:
    """Serves twice and compares."""
    wrong: list[str] = []
    with demo(setup) as url:
        engine = None if setup.url else probe(url, "probe_engine")
        one = answers(setup, url)
        other = [] if setup.cuda else answers(setup, url, alone=True)
    if setup.cuda:
        with demo(setup, "--set", "engine.enforce_eager=true") as url:
            other = answers(setup, url)
        wrong += unexpected(engine or {"model_runner": "V2", "cudagraph_mode": "?"})
    limits = TOLERANCES[setup.device]
    found = [difference(a, b) for a, b in zip(one, other, strict=True)]
    kinds = {kind: largest([made[kind] for made in found if kind in made]) for kind in limits}
    wrong += [
        f"request {i}: {kind} differs by {off}, more than {limits[kind]}"
        for i, made in enumerate(found)
        for kind, off in made.items()
        if not off <= limits[kind]
    ]
    against = "eager" if setup.cuda else "one at a time: a CPU has no CUDA graphs"
    return {
        "ok": not wrong,
        "wrong": wrong[:20],
        "engine": engine,
        "against": against,
        "requests": len(found),
        "tolerances": limits,
        "differences": kinds,
    }


def answers(setup: Setup, url: str, alone: bool = False) -> list[Any]:
    """Answers to the fixed requests, and scores of the fixed texts."""
    found: list[Any] = []
    for count in BATCHES[setup.device]:
        bodies = [request(count, i, TOKENS[setup.device]) for i in range(count)]
        batches = [[one] for one in bodies] if alone else [bodies]
        for batch in batches:
            found += at_once(url, batch)
    texts = [scored([text]) for text in TEXTS]
    for batch in [[one] for one in texts] if alone else [texts]:
        found += at_once(url, batch, "/v1/alignment/score")
    return found


def request(count: int, i: int, tokens: int) -> dict[str, Any]:
    """The i-th of so many: a prompt that no other begins with, greedily continued."""
    prompt = [100 + (count * 37 + i * 11 + j * 7) % 800 for j in range(5 + i % 13)]
    policy = POLICIES[i % len(POLICIES)]
    fields = {"temperature": 0.0, "ignore_eos": True, "max_tokens": tokens, "logprobs": 5}
    return body(policy, prompt=prompt, return_tokens_as_token_ids=True, **fields)


def difference(one: Any, other: Any) -> dict[str, float]:
    """By kind, between two answers to a request."""
    if "scores" in one:
        return _score_difference(one["scores"][0], other["scores"][0])
    (a,), (b,) = one["choices"], other["choices"]
    pairs = list(zip(a["token_ids"], b["token_ids"], strict=True))
    same = next((i for i, (x, y) in enumerate(pairs) if x != y), len(pairs))
    logprobs = [made["logprobs"]["token_logprobs"] for made in (a, b)]
    found = {"logprob": _apart(logprobs[0][:same], logprobs[1][:same])}
    if same < len(pairs):  # only where both tokens are as good
        best = a["logprobs"]["top_logprobs"][same]
        other_token = best.get(f"token_id:{pairs[same][1]}", -math.inf)
        found["argmax"] = max(best.values()) - other_token
    elif "alignment" in one:
        nats = [made["alignment"]["kl"]["estimate"] for made in (one, other)]
        found["kl"] = abs(nats[0] - nats[1])
    return found


def _score_difference(one: Any, other: Any) -> dict[str, float]:
    off = {name: abs(one["rewards"][name] - other["rewards"][name]) for name in REWARDS}
    values = [made["per_token"]["sentiment"] for made in (one, other)]
    return {
        "value": largest([off["sentiment"], _apart(*values)]),
        "log-likelihood": largest([off["fluent"], off["dpo"]]),
    }


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return largest([abs(a - b) for a, b in zip(one, other, strict=True)])
