"""Part 2: the demo's answers are those of Transformers on the CPU, and have the same law."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from .reference import Reference, Steering
from .requests import BUDGET, PROMPT, REWARDS, SEARCHES, STEERED, TEXTS, Steered, body, scored
from .served import Setup, at_once, demo, probe

TOLERANCES = {
    # Sums in another order, nothing else.
    "cpu": {"logprob": 1e-3, "argmax": 1e-3, "value": 1e-4, "kl": 1e-2, "log-likelihood": 5e-3},
    # vLLM's attention multiplies float32 as TF32, with 10 bits of mantissa. What a CUDA graph or
    # a kernel gets wrong is nats.
    "cuda": {"logprob": 5e-2, "argmax": 5e-2, "value": 2e-2, "kl": 5e-1, "log-likelihood": 2e-1},
}
"""By device, for float32, which the demo is served in; nats, and values in units of the reward."""
DRAWS = {"cpu": 1024, "cuda": 8192}
ALPHA = 1e-6
"""Chance of a false alarm of the chi-square test."""
A_REQUEST = {"cpu": 16, "cuda": 64}
_LAW = Steering(beta=0.1)


def check(setup: Setup) -> dict[str, Any]:
    """Asks for every kind of policy at once, twice, and for many short answers of one."""
    reference = Reference()
    with demo(setup) as url:
        engine = None if setup.url else probe(url, "probe_engine")
        rounds = [errors(reference, url) for _ in range(2)]
        law = chi_square(reference, url, DRAWS[setup.device], A_REQUEST[setup.device])
    limits = TOLERANCES[setup.device]
    found = {name: worst(rounds, name) for name in rounds[0]}
    wrong = [
        f"{name}: {kind} is off by {error}, more than {limits[kind]}"
        for name, kinds in found.items()
        for kind, error in kinds.items()
        if not error <= limits[kind]  # NaN is wrong too
    ]
    wrong += law["wrong"]
    if setup.cuda and engine is not None:
        wrong += unexpected(engine)
    return {
        "ok": not wrong,
        "wrong": wrong,
        "engine": engine,
        "tolerances": limits,
        "errors": found,
        "law": law,
    }


def unexpected(engine: dict[str, Any]) -> list[str]:
    """What the check is not of: another model runner, or no graphs."""
    wrong = []
    if engine["model_runner"] != "V2":
        wrong.append(f"the model runner is {engine['model_runner']}, not V2")
    if engine["cudagraph_mode"] == "NONE":
        wrong.append("there are no CUDA graphs")
    return wrong


def errors(reference: Reference, url: str) -> dict[str, dict[str, float]]:
    """The largest error of each kind in each request, all of which are sent at once."""
    steered = [body(one.policy, **one.fields) for one in STEERED.values()]
    searches = [
        body({**policy, "rewards": REWARDS, "report": "trace"}) for policy in SEARCHES.values()
    ]
    answers = at_once(url, [*steered, *searches])
    found = {
        name: steered_errors(reference, one, answer)
        for (name, one), answer in zip(STEERED.items(), answers[: len(steered)], strict=True)
    }
    found |= {
        name: search_errors(reference, answer)
        for name, answer in zip(SEARCHES, answers[len(steered) :], strict=True)
    }
    (scores,) = at_once(url, [scored(TEXTS)], "/v1/alignment/score")
    for text, score in zip(TEXTS, scores["scores"], strict=True):
        found[f"score of {text!r}"] = score_errors(reference, text, score)
    return found


def worst(rounds: Sequence[dict[str, dict[str, float]]], name: str) -> dict[str, float]:
    """The largest of each kind in all rounds."""
    return {kind: largest([made[name][kind] for made in rounds]) for kind in rounds[0][name]}


def largest(numbers: Sequence[float]) -> float:
    """The maximum; NaN if one is."""
    return math.nan if any(map(math.isnan, numbers)) else max(numbers, default=0.0)


def steered_errors(reference: Reference, one: Steered, answer: Any) -> dict[str, float]:
    """Of an answer whose tokens come from a known distribution."""
    (choice,) = answer["choices"]
    tokens = choice["token_ids"]
    temperature = one.fields["temperature"]
    path = reference.path(choice["prompt_token_ids"], tokens, one.by, temperature)
    at = torch.arange(len(tokens)), torch.tensor(tokens)
    taken = path.logits.log_softmax(-1)[at].tolist()
    served = choice["logprobs"]["token_logprobs"]
    found = {"logprob": largest([abs(a - b) for a, b in zip(taken, served, strict=True)])}
    if temperature == 0.0:
        behind = path.logits.max(-1).values - path.logits[at]
        found["argmax"] = largest(behind.tolist())
    if one.policy is not None:
        nats = answer["alignment"]["kl"]["estimate"]
        found["kl"] = abs(nats - path.kl)
        if one.by.budget is not None and not answer["alignment"]["kl"]["bound"] <= BUDGET:
            found["kl"] = math.inf  # whatever the reference says
    return found


def search_errors(reference: Reference, answer: Any) -> dict[str, float]:
    """Of an answer that was chosen: its rewards."""
    (choice,) = answer["choices"]
    exact = reference.rewards(choice["prompt_token_ids"], choice["token_ids"])
    return reward_errors(exact, answer["alignment"]["rewards"])


def score_errors(reference: Reference, text: str, score: Any) -> dict[str, float]:
    """Of a text's scores: its rewards, and V after each of its tokens."""
    tokenizer = reference.tokenizer
    prompt = tokenizer.encode(PROMPT)
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    found = reward_errors(reference.rewards(prompt, ids), score["rewards"])
    values = reference.values([*prompt, *ids])[len(prompt) :]
    served = score["per_token"]["sentiment"]
    every = largest([abs(a - b) for a, b in zip(values, served, strict=True)])
    return {**found, "value": largest([found["value"], every])}


def reward_errors(exact: dict[str, float], served: dict[str, float]) -> dict[str, float]:
    """Of a whole response."""
    off = {name: abs(served[name] - exact[name]) for name in exact}
    return {"value": off["sentiment"], "log-likelihood": largest([off["fluent"], off["dpo"]])}


def chi_square(reference: Reference, url: str, draws: int, a_request: int) -> dict[str, Any]:
    """The first two tokens under a tilt, against their joint law by the reference.

    The base model's law has to be refused by the same draws, or the test would have no power.
    """
    policy = {"method": "tokenwise_cd", "beta": _LAW.beta, "report": "none"}
    fields = {"max_tokens": 2, "ignore_eos": True, "n": a_request, "temperature": 1.0}
    answers = at_once(url, [body(policy, **fields)] * (draws // a_request))
    choices = [choice for answer in answers for choice in answer["choices"]]
    found = Counter(tuple(choice["token_ids"]) for choice in choices)
    prompt = choices[0]["prompt_token_ids"]
    p = probability(found, joint(reference, prompt, _LAW))
    of_base = probability(found, joint(reference, prompt, Steering()))
    wrong = []
    if not p > ALPHA:
        wrong.append(f"law: the probability of such a chi-square is {p}")
    if not of_base < ALPHA:
        wrong.append(f"law: the draws are those of the base model too, with {of_base}")
    return {
        "policy": policy,
        "draws": sum(found.values()),
        "p": p,
        "p of the base model's law": of_base,
        "wrong": wrong,
    }


def joint(
    reference: Reference, prompt: Sequence[int], by: Steering
) -> dict[tuple[int, ...], float]:
    """The probability of each pair of next tokens whose first is not rare."""
    _, first = reference.logits(prompt, by)
    found = {}
    for one, p in enumerate(first[-1].softmax(-1).tolist()):
        if p > 1e-3:
            _, second = reference.logits([*prompt, one], by)
            found |= {(one, b): p * q for b, q in enumerate(second[-1].softmax(-1).tolist())}
    return found


def probability(found: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """Of a chi-square as large, pairs that are expected fewer than 5 times counted as one."""
    draws = sum(found.values())
    common = {pair: draws * p for pair, p in law.items() if draws * p >= 5}
    cells = [(found[pair], expected) for pair, expected in common.items()]
    rare = draws - sum(n for n, _ in cells), draws - sum(expected for _, expected in cells)
    cells += [rare] if rare[1] >= 5 else []
    statistic = torch.tensor(sum((n - m) ** 2 / m for n, m in cells), dtype=torch.float64)
    freedom = torch.tensor(len(cells) - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))
