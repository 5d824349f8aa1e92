"""Served distributions against enumerated ones, by chi-square.

On 200 thousand sampled tokens each.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from .served import Served, demo_settings
from .tabular import FIRST, STATES, build_heads, build_model, counts

DRAWS = 200_000
TOKENS = 400
SIZES = {"base": 32, "big": 64, "pi": 32, "ref": 96}
BETA = 1.0
TILT = {"method": "tokenwise_cd", "beta": BETA, "report": "none"}
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


LAWS: dict[str, tuple[dict[str, Any], dict[str, Any], Tensor]] = {
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


@pytest.fixture(scope="module")
def tabular(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Four tables of three sizes, and a Q-head."""
    folder = tmp_path_factory.mktemp("tabular")
    for name, size in SIZES.items():
        build_model(TABLES[name], size, folder / name)
    build_heads(VALUES, SIZES["base"], folder)
    settings = demo_settings() | {
        "model": str(folder / "base"),
        "members": {name: str(folder / name) for name in SIZES if name != "base"},
        "rewards": {
            "r": {"kind": "value_head", "path": str(folder / "v"), "q_head": str(folder / "q")}
        },
        "default_reward": "r",
        "presets": {},
        "limits": {"allow_negative_weights": True},
    }
    with Served(settings, folder) as served:
        yield served


@pytest.mark.parametrize("name", LAWS)
async def test_the_served_law(tabular: Served, name: str) -> None:
    policy, fields, law = LAWS[name]
    policy = {**policy, "report": "none"}
    async with tabular.async_client() as http:

        async def response() -> list[int]:
            body = {
                **{"model": "demo", "prompt": [FIRST], "max_tokens": TOKENS, "ignore_eos": True},
                **{"return_token_ids": True, "alignment": policy},
                **fields,
            }
            answer = await http.post("/v1/completions", json=body)
            made: list[int] = answer.raise_for_status().json()["choices"][0]["token_ids"]
            return made

        responses = await asyncio.gather(*(response() for _ in range(DRAWS // TOKENS)))
    found = counts(responses, FIRST)
    expected = law.double().softmax(-1) * found.sum(1, keepdim=True)
    statistic = ((found - expected) ** 2 / expected).sum()
    assert float(expected.min()) > 1  # or chi-square does not hold
    freedom = torch.tensor(STATES * (STATES - 1), dtype=torch.float64)
    assert float(torch.special.gammaincc(freedom / 2, statistic / 2)) > ALPHA
    plain = TABLES["base"].double().softmax(-1) * found.sum(1, keepdim=True)
    assert float(((found - plain) ** 2 / plain).sum()) > 20 * float(freedom)
