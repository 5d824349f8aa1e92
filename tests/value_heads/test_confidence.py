"""Heads of minus a Mahalanobis distance, against the formula in numpy's float64."""

import math
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cdserve.config import Settings, ValueHeadReward
from cdserve.launch.heads import attach
from cdserve.scoring import Objective, Response, build
from value_heads import (
    CachedRollouts,
    HeadConfig,
    Rollouts,
    ShardWriter,
    ValueHead,
    confidence_head,
    fit,
    load_head,
    mean_confidence,
)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rollouts(ends: Tensor, ended: Sequence[bool] | None = None) -> Rollouts:
    """Responses of 1, 2, 3, 1, ... tokens whose last states are `ends`; all other states are far.

    They have no reward.
    """
    lengths = torch.tensor([1 + i % 3 for i in range(len(ends))])
    last = (lengths + 1).cumsum(0) - 1
    states = 1e3 * seeded(int(lengths.sum()) + len(ends), ends.shape[1], seed=1).to(ends.dtype)
    states[last] = ends
    return Rollouts(
        states=states,
        tokens=torch.zeros(int(lengths.sum()), dtype=torch.long),
        lengths=lengths,
        rewards=torch.zeros(len(ends), 0),
        ended=torch.tensor([True] * len(ends) if ended is None else ended),
        prompts=torch.arange(len(ends)),
    )


def reference(ends: Tensor, ridge: float, hidden: Tensor) -> np.ndarray:
    """-sqrt((h - centre)^T Sigma^-1 (h - centre)), float64 [n]."""
    phi, queries = ends.double().numpy(), hidden.double().numpy()
    centre = phi.mean(0)
    sigma = ridge * np.eye(len(centre)) + (phi - centre).T @ (phi - centre)
    centred = queries - centre
    return -np.sqrt(np.einsum("nd,dn->n", centred, np.linalg.solve(sigma, centred.T)))


def made(*shards: Rollouts, ridge: float = 1.0, name: str = "confidence") -> ValueHead:
    return confidence_head(shards, base_model="tiny", ridge=ridge, name=name)


def values(head: ValueHead, hidden: Tensor) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = head(hidden)[:, 0].numpy()
    return found


PLAIN = seeded(200, 8)
CASES = {
    "plain": PLAIN,
    "two responses": PLAIN[:2],
    "more dimensions than responses": seeded(5, 64),
    "one far outlier": torch.cat([PLAIN, torch.full((1, 8), 1e4)]),
    "far from 0": PLAIN + 1e3,
    "scales apart": PLAIN * torch.logspace(-3, 3, 8),
    "all the same": PLAIN[:1].expand(20, 8),
    "bfloat16": PLAIN.bfloat16(),
}


class TestTheValue:
    @pytest.mark.parametrize("ends", CASES.values(), ids=CASES)
    @pytest.mark.parametrize("ridge", [1e-3, 1.0, 1e3])
    def test_confidence_matches_the_formula(self, ends: Tensor, ridge: float) -> None:
        head = made(rollouts(ends), ridge=ridge)
        for hidden in (ends, 3 * ends + 1, seeded(50, ends.shape[1], seed=2)):
            expected = reference(ends, ridge, hidden)
            np.testing.assert_allclose(values(head, hidden), expected, rtol=1e-3, atol=1e-5)

    def test_confidence_is_zero_at_the_centre_and_negative_elsewhere(self) -> None:
        head = made(rollouts(PLAIN))
        assert values(head, PLAIN.mean(0, keepdim=True))[0] == pytest.approx(0, abs=1e-6)
        assert (values(head, 100 * seeded(1000, 8, seed=3)) < 0).all()

    def test_confidence_with_a_large_ridge_is_a_scaled_euclidean_distance(self) -> None:
        head = made(rollouts(PLAIN), ridge=1e8)
        hidden = seeded(10, 8, seed=2)
        distance = (hidden - PLAIN.mean(0)).norm(dim=1) / 1e4
        np.testing.assert_allclose(values(head, hidden), -distance.numpy(), rtol=1e-4)

    def test_confidence_accepts_any_leading_shape(self) -> None:
        head = made(rollouts(PLAIN))
        assert head(torch.zeros(2, 3, 8)).shape == (2, 3, 1)
        assert head(torch.zeros(2, 8, dtype=torch.bfloat16)).dtype == torch.float32

    def test_factor_is_a_root_of_the_inverse_scatter(self) -> None:
        weights = made(rollouts(PLAIN), ridge=2.0).state_dict()
        assert {name: weight.dtype for name, weight in weights.items()} == {
            "net.centre": torch.float32,
            "net.factor": torch.float32,
        }
        factor = weights["net.factor"].double()
        centred = (PLAIN - PLAIN.mean(0)).double()
        sigma = 2 * torch.eye(8) + centred.T @ centred
        torch.testing.assert_close(factor.T @ factor @ sigma, torch.eye(8, dtype=torch.float64))


class Watched(Sequence[Rollouts]):
    """Shards that see that the one before is gone when the next is read."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = parts
        self._last: weakref.ref[Rollouts] | None = None

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Rollouts:  # type: ignore[override]
        assert self._last is None or self._last() is None, "two shards are in memory"
        shard = rollouts(self._parts[index])
        self._last = weakref.ref(shard)
        return shard


class TestShards:
    @pytest.mark.parametrize("case", ["plain", "one far outlier", "far from 0"])
    def test_several_shards_give_the_same_head_as_one(self, case: str) -> None:
        ends = CASES[case]
        parts = [rollouts(part) for part in torch.split(ends, [1, 2, 100, len(ends) - 103])]
        whole, streamed = made(rollouts(ends)).state_dict(), made(*parts).state_dict()
        for name, weight in whole.items():
            torch.testing.assert_close(streamed[name], weight, rtol=1e-6, atol=1e-9)

    def test_only_one_shard_is_in_memory(self) -> None:
        parts = Watched(PLAIN.split(50))
        mean_confidence(confidence_head(parts, base_model="tiny"), Watched(PLAIN.split(60)))

    def test_cache_without_rewards_is_enough(self, tmp_path: Path) -> None:
        writer = ShardWriter(tmp_path, "train", shard_tokens=50)
        data = rollouts(PLAIN, [i % 2 == 0 for i in range(200)])
        states = data.states.split((data.lengths + 1).tolist())
        for i, tokens in enumerate(data.tokens.split(data.lengths.tolist())):
            writer.add(states[i], tokens, ended=i % 2 == 0, prompt=i)
        writer.flush()
        cached = CachedRollouts(tmp_path, "train")
        assert len(cached) > 1
        assert torch.equal(cached.ended, data.ended)
        found = confidence_head(cached, base_model="tiny")
        expected = reference(PLAIN[::2], 1.0, PLAIN)
        np.testing.assert_allclose(values(found, PLAIN), expected, rtol=1e-4)

    def test_cut_responses_do_not_change_the_head(self) -> None:
        ends = torch.cat([PLAIN, 1e6 * seeded(3, 8)])
        cut = rollouts(ends, [True] * 200 + [False] * 3)
        all_cut = rollouts(PLAIN, [False] * 200)
        head, alone = made(all_cut, cut), made(rollouts(PLAIN))
        assert np.array_equal(values(head, PLAIN), values(alone, PLAIN))
        assert mean_confidence(head, [cut]) == pytest.approx(values(alone, PLAIN).mean(), rel=1e-5)
        assert mean_confidence(head, [all_cut]) is None


class TestRefusals:
    @pytest.mark.parametrize("ridge", [0.0, -1.0, math.nan, math.inf])
    def test_ridge_must_be_positive(self, ridge: float) -> None:
        with pytest.raises(ValueError, match=f"ridge must be a positive number, got {ridge}"):
            made(rollouts(PLAIN), ridge=ridge)

    def test_ridge_too_small_to_invert_is_rejected(self) -> None:
        for ends, ridge in ((1e6 * seeded(2, 8), 1e-9), (PLAIN[:1].expand(3, 8), 1e-90)):
            with pytest.raises(ValueError, match=f"ridge must be larger.* got ridge {ridge:g}"):
                made(rollouts(ends), ridge=ridge)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_states_that_are_not_finite_are_rejected(self, bad: float) -> None:
        ends = PLAIN.clone()
        ends[3, 2] = bad
        with pytest.raises(ValueError, match="the states are not finite"):
            made(rollouts(ends))

    def test_fewer_than_two_ended_responses_are_rejected(self) -> None:
        one = rollouts(PLAIN[:3], [False, True, False])
        with pytest.raises(ValueError, match="responses that ended must be at least 2, got 1"):
            made(one)
        with pytest.raises(ValueError, match="responses that ended must be at least 2, got 0"):
            made()

    def test_fit_rejects_a_mahalanobis_head(self) -> None:
        data = replace(rollouts(PLAIN), rewards=torch.zeros(200, 1))
        with pytest.raises(ValueError, match="lowrank, tied, got 'mahalanobis': confidence_head"):
            fit(made(data), [data], [data])


CONFIG = HeadConfig(
    architecture="mahalanobis",
    rewards=("confidence",),
    hidden_size=8,
    shift=(0.0,),
    scale=(1.0,),
    base_model="tiny",
)


class TestConfig:
    def test_mahalanobis_config_survives_json(self) -> None:
        assert HeadConfig.from_json(CONFIG.to_json()) == CONFIG

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"rewards": ("a", "b"), "shift": (0.0, 0.0), "scale": (1.0, 1.0)},
                r"rewards must be one name, as the head is mahalanobis, got \('a', 'b'\)",
            ),
            ({"output": "sigmoid"}, 'output must be "identity", as .* mahalanobis, got .sigmoid.'),
            ({"kind": "soft", "beta": 1.0}, 'kind must be "mean", as .* mahalanobis, got .soft.'),
            ({"beta": 1.0}, r"beta must be null.* got 1\.0"),
            ({"shift": (1.0,)}, r"shift must be 0, as .* mahalanobis, got \(1\.0,\)"),
            ({"scale": (2.0,)}, r"scale must be 1, as .* mahalanobis, got \(2\.0,\)"),
            ({"mlp_width": 4}, "mlp_width must be null, as the head is mahalanobis, got 4"),
            ({"rank": 4}, "rank must be null, as the head is mahalanobis, got 4"),
            ({"vocab_size": 4}, "vocab_size must be null, as the head is mahalanobis, got 4"),
        ],
    )
    def test_mahalanobis_config_names_an_invalid_field(
        self, changes: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=f"^{message}$"):
            replace(CONFIG, **changes)  # type: ignore[arg-type]


def test_reloaded_confidence_head_gives_the_same_values(tmp_path: Path) -> None:
    head = confidence_head(
        [rollouts(PLAIN)], base_model="tiny", base_hash="0" * 64, ridge=0.5, name="sure"
    )
    head.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    for loaded in (ValueHead.from_pretrained(tmp_path), load_head(tmp_path)):
        assert isinstance(loaded, ValueHead)
        assert loaded.config == head.config
        assert loaded.config.rewards == ("sure",)
        assert np.array_equal(values(loaded, PLAIN), values(head, PLAIN))
    card = (tmp_path / "README.md").read_text()
    begins = "Head of architecture mahalanobis (minus a distance) on `hidden_states[-1]` of `tiny`"
    assert begins in card
    assert "units of the raw reward" not in card
    assert "Made of 200 responses that ended, λ = 0.5." in card


@pytest.mark.parametrize("c", [0.0, 0.5, 4.0])
async def test_reward_plus_weighted_confidence_is_the_lower_confidence_bound(c: float) -> None:
    """r - c sqrt((phi - centre)^T Sigma^-1 (phi - centre)), as a request's objective scores it."""
    hidden, helpful = 3 * seeded(6, 8, seed=4), seeded(6, seed=5).tolist()
    confidence = values(made(rollouts(PLAIN)), hidden).tolist()
    settings = ValueHeadReward(kind="value_head", path="head")
    rewards = build({"helpful": settings, "confidence": settings})
    responses = [
        Response(
            prompt="", text="", tokens=1, finished=True, values={"helpful": r, "confidence": v}
        )
        for r, v in zip(helpful, confidence, strict=True)
    ]
    scores = await Objective({"helpful": 1.0, "confidence": c}, rewards).score(responses)
    expected = np.array(helpful) + c * reference(PLAIN, 1.0, hidden)
    np.testing.assert_allclose([score.total for score in scores], expected, rtol=1e-5, atol=1e-6)
    order = np.argsort([score.total for score in scores])
    assert order.tolist() == np.argsort(expected).tolist()


def test_served_confidence_scores_only_whole_responses(tmp_path: Path) -> None:
    made(rollouts(PLAIN)).save_pretrained(tmp_path)
    sent = {"model": "m", "rewards": {"sure": {"kind": "value_head", "path": str(tmp_path)}}}
    heads = attach(Settings.model_validate(sent))
    assert not build(Settings.model_validate(sent).rewards, heads.outputs)["sure"].prefixes
