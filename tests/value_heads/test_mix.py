"""Logit mixing: worked values, recipes, and how far many tokens are from one."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from cdserve.decoders import LogitMixingPolicy
from value_heads import mixed

P = (0.5, 0.3, 0.2)
REWARDS = {"first": (0.0, 1.0, 0.0), "second": (0.0, 0.0, 2.0)}


def tilted(reward: tuple[float, ...], strength: float = 1.0) -> list[float]:
    """P tilted by a reward: the optimal policy at beta = 1 / strength."""
    weights = [p * math.exp(strength * r) for p, r in zip(P, reward, strict=True)]
    return [weight / sum(weights) for weight in weights]


def mixture(weights: Mapping[str, float], **models: Any) -> list[float]:
    """The mixed distribution of models given by their probabilities."""
    logits = {n: torch.tensor([p], dtype=torch.float64).log() for n, p in models.items()}
    base = logits.pop("base")
    found: list[float] = mixed(base, logits, [weights]).softmax(-1)[0].tolist()
    return found


def resolved(**sent: Any) -> dict[str, float]:
    """Raw weights of a policy."""
    return LogitMixingPolicy.model_validate({"method": "logit_mixing", **sent}).resolved()


MODELS = {name: tilted(reward) for name, reward in REWARDS.items()}


class TestOneStep:
    def test_equal_weights_give_the_tilt_by_the_mean_reward(self) -> None:
        mean = tuple(sum(rewards) / 2 for rewards in zip(*REWARDS.values(), strict=True))
        found = mixture({"first": 0.5, "second": 0.5}, base=P, **MODELS)
        assert found == pytest.approx(tilted(mean), abs=1e-12)

    def test_weights_that_sum_above_one_need_the_reference(self) -> None:
        both = tuple(sum(rewards) for rewards in zip(*REWARDS.values(), strict=True))
        without = mixture({"first": 1.0, "second": 1.0}, base=P, **MODELS)
        off = max(abs(a - b) for a, b in zip(without, tilted(both), strict=True))
        assert off == pytest.approx(0.155025, abs=1e-6)
        recipe = {"kind": "mixture", "weights": {"first": 1.0, "second": 1.0}, "reference": "base"}
        weights = resolved(recipe=recipe)
        assert weights == {"first": 1.0, "second": 1.0, "base": -1.0}
        assert mixture(weights, base=P, **MODELS) == pytest.approx(tilted(both), abs=1e-12)

    def test_rescale_recipe_rescales_the_kl_penalty(self) -> None:
        weights = resolved(recipe={"kind": "rescale", "tuned": "pi", "ratio": 2.0})
        found = mixture(weights, base=P, pi=tilted(REWARDS["first"]))
        assert found == pytest.approx([0.171426, 0.760004, 0.068570], abs=1e-6)
        assert found == pytest.approx(tilted(REWARDS["first"], 2.0), abs=1e-12)

    def test_rescale_ratio_one_gives_the_tuned_model_and_near_zero_the_reference(self) -> None:
        pi = tilted(REWARDS["first"])
        one = resolved(recipe={"kind": "rescale", "tuned": "pi", "ratio": 1.0})
        assert mixture(one, base=P, pi=pi) == pytest.approx(pi, abs=1e-12)
        small = resolved(recipe={"kind": "rescale", "tuned": "pi", "ratio": 1e-9})
        assert mixture(small, base=P, pi=pi) == pytest.approx(P, abs=1e-8)

    def test_proxy_recipe_shifts_the_base(self) -> None:
        big = (0.2, 0.5, 0.3)
        weights = resolved(recipe={"kind": "proxy", "tuned": "pi", "reference": "ref"})
        shifted = [b * math.exp(r) for b, r in zip(big, REWARDS["first"], strict=True)]
        expected = [weight / sum(shifted) for weight in shifted]
        found = mixture(weights, base=big, pi=tilted(REWARDS["first"]), ref=P)
        assert found == pytest.approx(expected, abs=1e-12)
        assert mixture(weights, base=big, pi=P, ref=P) == pytest.approx(big, abs=1e-12)


class TestRows:
    def test_each_row_uses_its_own_weights(self) -> None:
        base, tuned = torch.randn(3, 7), torch.randn(3, 7)
        weights = [{"base": 1.0}, {"tuned": 1.0}, {"base": 0.25, "tuned": -0.5}]
        found = mixed(base, {"tuned": tuned}, weights)
        assert torch.equal(found[0], base[0])
        assert torch.equal(found[1], tuned[1])
        torch.testing.assert_close(found[2], 0.25 * base[2] - 0.5 * tuned[2])

    def test_mixture_of_equal_members_equals_the_member_bit_for_bit(self) -> None:
        base, tuned = torch.randn(1, 7), torch.randn(1, 7)
        found = mixed(base, {"a": tuned, "b": tuned}, [{"a": 0.5, "b": 0.5}])
        assert torch.equal(found, tuned)

    def test_vocabulary_padding_gets_no_probability(self) -> None:
        found = mixed(torch.zeros(1, 5), {"tuned": torch.zeros(1, 4)}, [{"tuned": 1.0}])
        assert found.softmax(-1).tolist() == [[0.25, 0.25, 0.25, 0.25, 0.0]]

    def test_infinite_logit_of_a_model_with_weight_zero_is_ignored(self) -> None:
        base = torch.tensor([[0.0, -torch.inf]])
        found = mixed(base, {"tuned": torch.zeros(1, 2)}, [{"tuned": 1.0}])
        assert found.tolist() == [[0.0, 0.0]]


def test_mixing_several_steps_only_approximates_the_sequence_mixture() -> None:
    """Products of next-token distributions differ from the product over sequences."""
    first = {"A": (0.9, 0.1), "B": (0.5, 0.5)}
    then = {"A": ((0.5, 0.5), (0.01, 0.99)), "B": ((0.9, 0.1), (0.99, 0.01))}
    halves = {"base": 0.5, "B": 0.5}
    opening = mixture(halves, base=first["A"], B=first["B"])
    by_token, by_sequence = [], []
    for y1, y2 in itertools.product((0, 1), repeat=2):
        following = mixture(halves, base=then["A"][y1], B=then["B"][y1])
        by_token.append(opening[y1] * following[y2])
        by_sequence.append(math.sqrt(math.prod(first[m][y1] * then[m][y1][y2] for m in "AB")))
    by_sequence = [weight / sum(by_sequence) for weight in by_sequence]
    # Rounded to 1e-6 where they were worked out.
    assert by_token == pytest.approx([0.5625, 0.1875, 0.125, 0.125], abs=1e-6)
    assert by_sequence == pytest.approx([0.698219, 0.232740, 0.034521, 0.034521], abs=1e-6)
    distance = sum(abs(a - b) for a, b in zip(by_token, by_sequence, strict=True)) / 2
    assert distance == pytest.approx(0.180958, abs=1e-6)
