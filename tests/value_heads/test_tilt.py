"""Tilts of a distribution: worked values, invariances, KL."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from value_heads import centred_on_top_k, kl

P = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
V = torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64)
ONE = torch.ones(1)
NUMBERS = st.floats(-20, 20)
ROWS = st.integers(2, 6).flatmap(
    lambda n: st.tuples(*(st.lists(NUMBERS, min_size=n, max_size=n) for _ in range(2)))
)


def exact_kl(logits: list[float], changed: list[float], temperature: float = 1.0) -> float:
    """KL(softmax(changed / T) || softmax(logits / T)) in Python floats."""

    def softmax(row: list[float]) -> list[float]:
        top = max(row)
        weights = [math.exp((z - top) / temperature) for z in row]
        return [w / sum(weights) for w in weights]

    pairs = zip(softmax(changed), softmax(logits), strict=True)
    return sum(a * math.log(a / b) for a, b in pairs if a > 0)


@settings(derandomize=True, deadline=None)
@given(ROWS, st.floats(0.3, 3))
def test_kl_matches_its_definition(
    rows: tuple[list[float], list[float]], temperature: float
) -> None:
    logits, changed = (torch.tensor([row], dtype=torch.float64) for row in rows)
    found = kl(logits, changed, torch.tensor([temperature], dtype=torch.float64))
    assert found.item() == pytest.approx(exact_kl(*rows, temperature), abs=1e-9)


def test_kl_of_unchanged_logits_is_zero() -> None:
    logits = torch.randn(4, 9)
    assert kl(logits, logits.clone(), torch.ones(4)).tolist() == [0.0] * 4


def test_kl_of_an_added_constant_is_zero() -> None:
    logits = torch.randn(4, 9, dtype=torch.float64)
    found = kl(logits, logits + 3.0, torch.ones(4))
    assert found == pytest.approx([0.0] * 4, abs=1e-12)


def test_kl_ignores_masked_tokens() -> None:
    inf = float("inf")
    logits = torch.tensor([[0.0, -inf, 1.0]])
    assert kl(logits, logits + torch.tensor([[1.0, 5.0, 0.0]]), ONE).isfinite().all()


def test_kl_of_greedy_rows_is_at_temperature_one() -> None:
    logits, changed = P.log(), P.log() + V
    assert torch.equal(kl(logits, changed, torch.zeros(1)), kl(logits, changed, ONE))


def test_kl_of_a_weak_tilt_tends_to_half_the_variance() -> None:
    """KL of a small tilt is its variance under p, halved."""
    beta = 1e3
    mean = (P * V).sum()
    variance = (P * (V - mean).square()).sum().item()
    found = kl(P.log(), P.log() + V / beta, ONE).item()
    assert found == pytest.approx(variance / (2 * beta**2), rel=1e-2)


def test_top_k_tilt_keeps_ratios_within_the_top_k() -> None:
    delta = centred_on_top_k(V, P.log(), torch.tensor([2]))
    assert delta[0, 2] == 0
    assert (delta[0, 1] - delta[0, 0]).item() == pytest.approx(1.0)
    assert (delta[0, 0] + delta[0, 1]).item() == pytest.approx(0.0)


def test_top_k_of_the_whole_vocabulary_equals_the_tilt() -> None:
    delta = centred_on_top_k(V, P.log(), torch.tensor([3]))
    assert (P.log() + delta).softmax(-1) == pytest.approx((P.log() + V).softmax(-1))


def test_top_k_of_one_tilts_nothing() -> None:
    assert centred_on_top_k(V, P.log(), torch.tensor([1])).tolist() == [[0.0, 0.0, 0.0]]


def test_each_row_uses_its_own_top_k() -> None:
    logits, delta = torch.randn(3, 8), torch.randn(3, 8)
    ks = torch.tensor([2, 8, 5])
    together = centred_on_top_k(delta, logits, ks)
    for i, k in enumerate(ks):
        alone = centred_on_top_k(delta[i : i + 1], logits[i : i + 1], k[None])
        torch.testing.assert_close(together[i : i + 1], alone)
        assert (together[i] != 0).sum() <= k
