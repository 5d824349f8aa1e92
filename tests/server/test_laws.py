"""Served distributions against enumerated ones, by chi-square.

Steered ones on 20 thousand sampled tokens each, or as many as ``LAW_DRAWS`` says (``make laws``);
searches on "ab3", whose model here has a token for every prefix, so that the last token names it.
"""

import asyncio
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdserve import kl
from tests.decoders.test_until import searched
from tests.decoders.toy import (
    LENGTH,
    A,
    B,
    E,
    P,
    Tokens,
    blockwise,
    ended,
    probability,
    reward,
    value,
)

from .served import Served, demo_settings
from .tabular import FIRST, NEVER, STATES, build_heads, build_model, counts

DRAWS = int(os.environ.get("LAW_DRAWS", "20000"))
TOKENS = 400
SIZES = {"base": 32, "big": 64, "pi": 32, "ref": 96}
BETA = 1.0
TILT = {"method": "tokenwise_cd", "beta": BETA, "report": "none"}
FREEDOM = STATES * (STATES - 1)
ALPHA = 1e-6
"""Chance of a false alarm in one test."""


def logits(seed: int) -> Tensor:
    return torch.randn(STATES, STATES, generator=torch.Generator().manual_seed(seed))


TABLES = {name: logits(i) for i, name in enumerate(SIZES)}
VALUES = logits(9)


def mixture(**weights: float) -> Tensor:
    """sum_i w_i log p_i, the rows' constants left out."""
    parts = [weight * TABLES[name].log_softmax(-1) for name, weight in weights.items()]
    return torch.stack(parts).sum(0)


def top_k(z: Tensor, delta: Tensor, k: int) -> Tensor:
    """A tilt about its mean over the k most likely."""
    found = z.clone()
    for state in range(STATES):
        best = sorted(range(STATES), key=lambda token: -float(z[state, token]))[:k]
        mean = sum(float(delta[state, token]) for token in best) / k
        for token in best:
            found[state, token] += float(delta[state, token]) - mean
    return found


DISTRIBUTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], Tensor]] = {
    "tilt": (TILT, {}, TABLES["base"] + VALUES / BETA),
    "tilt, top-k, temperature": (
        {**TILT, "top_k": 3},
        {"temperature": 0.7},
        top_k(TABLES["base"], VALUES / BETA, 3) / 0.7,
    ),
    "mixture": (
        {"method": "logit_mixing", "weights": {"base": 0.5, "big": 0.3, "pi": 0.4}},
        {},
        mixture(base=0.5, big=0.3, pi=0.4),
    ),
    "rescale": (
        {
            "method": "logit_mixing",
            "recipe": {"kind": "rescale", "tuned": "pi", "reference": "ref", "ratio": 2.0},
        },
        {},
        mixture(ref=-1.0, pi=2.0),
    ),
    "proxy under a tilt": (
        {
            **TILT,
            "proposal": {
                "method": "logit_mixing",
                "recipe": {"kind": "proxy", "tuned": "pi", "reference": "ref", "alpha": 0.8},
            },
        },
        {},
        mixture(base=1.0, pi=0.8, ref=-0.8) + VALUES / BETA,
    ),
}


NODES: list[Tokens] = [
    s for n in range(LENGTH + 1) for s in product((A, B, E), repeat=n) if E not in s[:-1]
]
"""The prefixes of "ab3", each with a token of its own behind the tables'."""
TREE = torch.tensor(
    [
        [math.log(P[after[-1]]) if after and after[:-1] == node else NEVER for after in NODES]
        for node in NODES
    ]
)


def letters(node: Tokens) -> str:
    """Text of the last two tokens of a prefix, which only that prefix has."""
    return "".join(chr(ord("A") + NODES.index(node[:n])) for n in (len(node) - 1, len(node)))


AFTER_A = [node for node in NODES if node[-2:] == (A, B)]


def beside(one: Tensor, other: Tensor, between: float) -> Tensor:
    """Both tables in one, without a way from one's states to the other's."""
    found = torch.full((len(one) + len(other),) * 2, between)
    found[: len(one), : len(one)] = one
    found[len(one) :, len(one) :] = other
    return found


def heads(folder: Path) -> dict[str, Any]:
    return {"kind": "value_head", "path": str(folder / "v"), "q_head": str(folder / "q")}


@pytest.fixture(scope="module")
def tabular(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Four tables of three sizes, the base's with "ab3" beside it, and heads of both."""
    folder = tmp_path_factory.mktemp("tabular")
    for name, size in SIZES.items():
        table = beside(TABLES[name], TREE, NEVER) if name == "base" else TABLES[name]
        build_model(table, size, folder / name)
    none, tree = torch.zeros(STATES), torch.tensor([value(node) for node in NODES])
    q_values = torch.tensor([[value(after) for after in NODES] for _ in NODES])
    build_heads(none, VALUES, SIZES["base"], folder / "r")
    build_heads(
        torch.cat([none, tree]), beside(0 * VALUES, q_values, 0.0), SIZES["base"], folder / "b"
    )
    settings = demo_settings() | {
        "model": str(folder / "base"),
        "members": {name: str(folder / name) for name in SIZES if name != "base"},
        "rewards": {name: heads(folder / name) for name in ("r", "b")},
        "default_reward": "r",
        "presets": {},
        "playground": False,
        "limits": {"allow_negative_weights": True},
    }
    # All requests in one batch, and nothing counted beside them.
    flags = ["--max-num-seqs", str(DRAWS // TOKENS), "--disable-log-stats"]
    with Served(settings, folder, flags) as served:
        yield served


@pytest.mark.own_servers
@pytest.mark.parametrize("name", DISTRIBUTIONS)
async def test_served_distribution_matches_the_enumerated_one(tabular: Served, name: str) -> None:
    policy, fields, steered = DISTRIBUTIONS[name]
    policy = {**policy, "report": "none"}
    async with tabular.async_client() as http:

        async def response() -> list[int]:
            body = {
                **{"model": "demo", "prompt": [FIRST], "max_tokens": TOKENS, "ignore_eos": True},
                **{"return_token_ids": True, "alignment": policy},
                **fields,
            }
            answer = await http.post("/v1/completions", json=body)
            token_ids: list[int] = answer.raise_for_status().json()["choices"][0]["token_ids"]
            return token_ids

        responses = await asyncio.gather(*(response() for _ in range(DRAWS // TOKENS)))
    observed = counts(responses, FIRST)
    assert chance(observed, steered) > ALPHA
    assert chi_square(observed, TABLES["base"]) > 20 * FREEDOM


@pytest.mark.parametrize(("strength", "detected"), [(1.0, False), (1.1, True), (0.9, True)])
def test_check_detects_a_tilt_of_another_strength(strength: float, detected: bool) -> None:
    """The check of served distributions, on tokens drawn here."""
    p = (TABLES["base"] + strength * VALUES / BETA).double().softmax(-1)
    generator = torch.Generator().manual_seed(0)
    states = [torch.zeros(20_000 // TOKENS, dtype=torch.long)]
    for _ in range(TOKENS):
        states.append(torch.multinomial(p[states[-1]], 1, generator=generator)[:, 0])
    responses = FIRST + torch.stack(states[1:], 1)
    steered = DISTRIBUTIONS["tilt"][2]
    assert (chance(counts(responses.tolist(), FIRST), steered) < ALPHA) is detected


def chi_square(observed: Tensor, logits: Tensor) -> float:
    """Chi-square of token counts [S, S], next by last, against the softmax of logits [S, S]."""
    expected = logits.double().softmax(-1) * observed.sum(1, keepdim=True)
    return float(((observed - expected) ** 2 / expected).sum())


def chance(observed: Tensor, logits: Tensor) -> float:
    """Chance of counts that fit the softmax of logits no better than these."""
    expected = logits.double().softmax(-1) * observed.sum(1, keepdim=True)
    assert float(expected.min()) > 1  # or chi-square does not hold
    statistic = torch.tensor(chi_square(observed, logits), dtype=torch.float64)
    half = torch.tensor(FREEDOM / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, statistic / 2))


ANSWERS = 640
SEARCHES: dict[str, tuple[dict[str, Any], int, int | None]] = {
    "best-of-2": ({"method": "best_of_n", "n": 2}, 2, None),
    "best-of-4": ({"method": "best_of_n", "n": 4}, 4, None),
    **{
        f"blocks of {m}, K = {k}": ({"method": "blockwise_cd", "k": k, "m": m}, k, m)
        for m, k in ((1, 2), (1, 3), (2, 2), (2, 4))
    },
}


@pytest.mark.own_servers
@pytest.mark.parametrize("name", SEARCHES)
async def test_served_distribution_of_a_search_matches_the_enumerated_one(
    tabular: Served, name: str
) -> None:
    """Distribution, mean reward, win-rate and KL; the bound is no less than the KL."""
    policy, k, m = SEARCHES[name]
    found, reports = await ab3(tabular, policy)
    exact = blockwise(k, m)
    assert_follows(found, exact.responses)
    bounds = [made["kl"]["bound"] for made in reports]
    assert sum(bounds) / ANSWERS == pytest.approx(exact.kl_bound, abs=0.03)
    assert sum(bounds) / ANSWERS > exact.kl
    assert mean_win_rate(found) == pytest.approx(exact.win_rate, abs=0.06)


BLOCKS: dict[str, tuple[dict[str, Any], Mapping[Tokens, float]]] = {
    "steps that end with a b, over two tokens": (
        {"method": "blockwise_cd", "k": 2, "m": 2, "until": [letters(node) for node in AFTER_A]},
        searched([2], 2, ["ab"]),
    ),
    "blocks with look-ahead": (
        {"method": "blockwise_cd", "k": 2, "m": 1, "lookahead": LENGTH},
        searched([2], 1, rank=reward),
    ),
}


@pytest.mark.own_servers
@pytest.mark.parametrize("name", BLOCKS)
async def test_served_distribution_of_blocks_matches_the_enumerated_one(
    tabular: Served, name: str
) -> None:
    policy, expected = BLOCKS[name]
    found, reports = await ab3(tabular, policy)
    assert_follows(found, expected)
    exact = sum(p * math.log(p / probability(y)) for y, p in expected.items())
    assert sum(made["kl"]["bound"] for made in reports) / ANSWERS > exact


@pytest.mark.own_servers
@pytest.mark.parametrize("at_once", [1, 4])
async def test_served_distribution_of_a_threshold_stop_matches_the_closed_form(
    tabular: Served, at_once: int
) -> None:
    """The first of four responses with a b; if none has one, any response without."""
    n = 4
    stop = {"threshold": 0.5}
    policy = {"method": "best_of_n", "n": n, "at_once": at_once, "stop": stop}
    found, reports = await ab3(tabular, policy)
    passing = sum(probability(y) for y in LEAVES if reward(y) >= 1)
    missed = (1 - passing) ** n
    share = {True: (1 - missed) / passing, False: missed / (1 - passing)}
    expected = {y: probability(y) * share[reward(y) >= 1] for y in LEAVES}
    assert_follows(found, expected)
    bound = kl.best_of_n_bound(n)
    assert {made["kl"]["bound"] for made in reports} == {bound}
    assert sum(p * math.log(p / probability(y)) for y, p in expected.items()) < bound
    if at_once == 1:
        drawn = sum(made["draws"]["made"] for made in reports) / ANSWERS
        assert drawn == pytest.approx((1 - missed) / passing, abs=0.1)


@pytest.mark.own_servers
async def test_served_distribution_of_an_exact_tilt_has_the_published_values(
    tabular: Served,
) -> None:
    """E r = 1.52554057 at KL = .40142906."""
    policy = {"method": "tokenwise_cd", "beta": 1.0}
    found, reports = await ab3(tabular, policy)
    expected = {}
    for y in LEAVES:
        p = 1.0
        for i in range(len(y)):
            weights = [P[z] * math.exp(value((*y[:i], z))) for z in (A, B, E)]
            p *= weights[y[i]] / sum(weights)
        expected[y] = p
    assert_follows(found, expected)
    assert sum(p * reward(y) for y, p in expected.items()) == pytest.approx(1.52554057, abs=1e-8)
    spent = [made["kl"]["bound"] for made in reports]
    assert sum(spent) / ANSWERS == pytest.approx(0.40142906, abs=0.06)


ACCEPTED = [(A, A, B), (A, B, A), (A, E), (B, A, A), (B, B, E)]
"""Responses of the grammar."""
EOS = 3
"""Ends a response of the grammar; it is a token of the last block, or of one more."""


def masked(prefix: Tokens, m: int) -> dict[Tokens, float]:
    """Probability of each block of at most ``m`` tokens where every step is masked."""
    if m == 0 or prefix[-1:] == (EOS,):
        return {(): 1.0}
    n = len(prefix)
    allowed = {y[n] for y in ACCEPTED if y[:n] == prefix and len(y) > n}
    p = {z: P[z] / sum(P[other] for other in allowed) for z in allowed} or {EOS: 1.0}
    return {(z, *rest): p[z] * q for z in p for rest, q in masked((*prefix, z), m - 1).items()}


def masked_search(k: int, m: int, prefix: Tokens = ()) -> Counter[Tokens]:
    """Distribution of responses by the best of ``k`` masked blocks; V is 0 after EOS."""
    if prefix[-1:] == (EOS,):
        return Counter({prefix[:-1]: 1.0})
    blocks = masked(prefix, m)
    values = {z: 0.0 if z[-1] == EOS else value((*prefix, *z)) for z in blocks}
    responses: Counter[Tokens] = Counter()
    for block, p in blocks.items():
        below = sum(q for z, q in blocks.items() if values[z] < values[block])
        equal = sum(q for z, q in blocks.items() if values[z] == values[block])
        best = ((below + equal) ** k - below**k) * p / equal
        for response, q in masked_search(k, m, (*prefix, *block)).items():
            responses[response] += best * q
    return responses


@pytest.mark.own_servers
@pytest.mark.parametrize(("k", "m"), [(1, 1), (2, 1), (2, 2)])
async def test_served_distribution_under_a_grammar_is_that_of_the_masked_model(
    tabular: Served, k: int, m: int
) -> None:
    texts = {
        "".join(chr(ord("A") + NODES.index(y[:i])) for i in range(1, len(y) + 1)): y
        for y in ACCEPTED
    }
    policy = {"method": "blockwise_cd", "k": k, "m": m}
    choices, _ = await answers(tabular, policy, structured_outputs={"choice": list(texts)})
    found = Counter(texts[choice["text"]] for choice in choices)
    assert_follows(found, masked_search(k, m))


LEAVES = [node for node in NODES if ended(node)]


async def ab3(server: Served, policy: dict[str, Any]) -> tuple[Counter[Tokens], list[Any]]:
    """Responses to the empty prefix, and their reports."""
    first = FIRST + STATES
    stops = [first + i for i, node in enumerate(NODES) if ended(node)]
    choices, reports = await answers(server, policy, stop_token_ids=stops)
    return Counter(NODES[choice["token_ids"][-1] - first] for choice in choices), reports


async def answers(
    server: Served, policy: dict[str, Any], **fields: Any
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Choices of the answers to the empty prefix, and their reports."""
    body = {
        **{"model": "demo", "prompt": [FIRST + STATES], "max_tokens": LENGTH + 1, "n": 16},
        **{"return_token_ids": True, "alignment": {**policy, "rewards": {"b": 1.0}}},
        **fields,
    }
    async with server.async_client() as http:
        posts = (http.post("/v1/completions", json=body) for _ in range(ANSWERS // 16))
        bodies = [got.raise_for_status().json() for got in await asyncio.gather(*posts)]
    choices = [choice for answer in bodies for choice in answer["choices"]]
    assert {choice["finish_reason"] for choice in choices} == {"stop"}
    return choices, [report for answer in bodies for report in answer["alignment"]["choices"]]


def assert_follows(found: Counter[Tokens], expected: Mapping[Tokens, float]) -> None:
    """Chi-square, rare responses counted as one; and the mean reward, within five errors."""
    assert found.keys() <= expected.keys()
    cells = [(found[y], ANSWERS * p) for y, p in expected.items()]
    rare = [cell for cell in cells if cell[1] < 5]
    common = [cell for cell in cells if cell[1] >= 5]
    common += [(sum(n for n, _ in rare), sum(m for _, m in rare))] if rare else []
    statistic = torch.tensor(sum((n - m) ** 2 / m for n, m in common), dtype=torch.float64)
    freedom = torch.tensor(len(common) - 1, dtype=torch.float64)
    assert float(torch.special.gammaincc(freedom / 2, statistic / 2)) > ALPHA
    mean = sum(p * reward(y) for y, p in expected.items())
    spread = math.sqrt(sum(p * (reward(y) - mean) ** 2 for y, p in expected.items()) / ANSWERS)
    seen = sum(n * reward(y) for y, n in found.items()) / ANSWERS
    assert seen == pytest.approx(mean, abs=5 * spread)


def mean_win_rate(found: Counter[Tokens]) -> float:
    """Against a response of p; a tie is half a win."""
    return sum(
        n / ANSWERS * probability(z) * (0.5 if reward(y) == reward(z) else reward(y) > reward(z))
        for y, n in found.items()
        for z in LEAVES
    )
