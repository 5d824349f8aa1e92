"""Rows of different kinds in one launch of the kernel: mixed, tilted, both, neither."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from value_heads.kernels import BatchMixture, BatchTilt, Statistics, operations

from .cases import DEVICE, logits_of
from .test_fused_steer import mixture_of, temperatures, tilt_of

VOCABULARY = 150
KINDS = {
    "one of each": [3, 1, 2, 0],
    "tiles of one kind": [3] * 3 + [1] * 70 + [2] * 70 + [0] * 3,
    "none mixed": [2, 0, 2],
    "none tilted": [1, 1, 0],
    "none at all": [0, 0],
}
"""More than 64 rows are in several tiles."""


@pytest.fixture(autouse=True)
def _nan_in_new_memory() -> Iterator[None]:
    """What a kernel leaves unwritten is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


def drawn(count: int) -> list[int]:
    """Random kinds, rows that mix first."""
    return sorted(torch.randint(4, (count,)).tolist(), key=lambda kind: not kind & 1)


def of_first(mixture: BatchMixture, count: int) -> BatchMixture:
    """The mixture with members of the first rows alone."""
    return replace(mixture, members=tuple(member[:count] for member in mixture.members))


def poisoned_where_unused(tilt: BatchTilt, kinds: Tensor) -> BatchTilt:
    """The tilt with NaN in the factors of rows that are not tilted, and no k there."""
    unused = kinds & 2 == 0
    factors = tuple(u.masked_fill(unused[:, None, None], torch.nan) for u in tilt.factors)
    limits = None if tilt.top_k is None else tilt.top_k.masked_fill(unused, 0)
    return replace(tilt, factors=factors, top_k=limits)


class Batch:
    """Logits with rows of these kinds, and what they are steered by."""

    def __init__(self, kinds: list[int], top_k: int = 0) -> None:
        count = len(kinds)
        self.kinds = torch.tensor(kinds, device=DEVICE)
        self.mixed = sum(kind & 1 for kind in kinds)
        self.index = torch.randperm(count + 2, device=DEVICE)[:count]
        self.logits = logits_of(count + 2, VOCABULARY, self.index.tolist())
        self.logits[self.index[0], -2] = -0.0
        self.mixture = mixture_of(count, VOCABULARY)
        self.tilt = poisoned_where_unused(tilt_of(count, VOCABULARY, top_k=top_k), self.kinds)
        self.temperature = temperatures(count)

    def steered(self, fused: bool) -> tuple[Tensor, Statistics]:
        """The logits and statistics by the kernel, or by the reference in float64."""
        logits = self.logits.clone() if fused else self.logits.double()
        found = operations(fused).steer(
            logits,
            self.index,
            mixture=of_first(self.mixture, self.mixed),
            tilt=self.tilt,
            temperature=self.temperature,
            kinds=self.kinds,
        )
        assert found is not None
        return logits, found

    def alone(self, i: int) -> tuple[Tensor, Statistics]:
        """Row i of them in a launch that has its kind alone."""
        logits, at, kind = self.logits.clone(), slice(i, i + 1), int(self.kinds[i])
        mixture, tilt = self.mixture, self.tilt
        members = tuple(member[at] for member in mixture.members)
        factors = tuple(u[at] for u in tilt.factors)
        limits = None if tilt.top_k is None else tilt.top_k[at]
        found = operations(True).steer(
            logits,
            self.index[at],
            mixture=replace(mixture, members=members, weights=mixture.weights[at])
            if kind & 1
            else None,
            tilt=replace(tilt, factors=factors, top_k=limits) if kind & 2 else None,
            temperature=self.temperature[at],
        )
        assert found is not None
        return logits[self.index[i]], found


def bits(logits: Tensor) -> Tensor:
    return logits.view(torch.int64 if logits.dtype == torch.float64 else torch.int32)


def expect_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        found.double(), expected.double(), equal_nan=True, rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize(
    ("name", "top_k"),
    [*((name, 0) for name in KINDS), ("one of each", 20), ("none tilted", 20)],
)
def test_kinds_in_one_launch_match_the_reference(name: str, top_k: int) -> None:
    batch = Batch(KINDS[name], top_k)
    logits, found = batch.steered(fused=True)
    expected, truth = batch.steered(fused=False)
    expect_close(logits, expected)
    for value, true in zip(found, truth, strict=True):
        bounded = true < 1e20  # where the KL is infinite, a large number stands for it
        assert (value[true > 1e20] > 1e20).all()
        expect_close(value[bounded], true[bounded])


@pytest.mark.parametrize("top_k", [0, 20])
def test_each_row_of_random_kinds_is_steered_as_if_alone(top_k: int) -> None:
    for count in (6, 21) if top_k else (6, 21, 67):
        batch = Batch(drawn(count), top_k)
        logits, found = batch.steered(fused=True)
        for i in range(0, count, 1 + count // 5):
            row, alone = batch.alone(i)
            expect_close(logits[batch.index[i]], row)
            for value, one in zip(found, alone, strict=True):
                expect_close(value[i], one[0])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("top_k", [0, 20])
def test_row_keeps_logits_bit_for_bit_outside_its_kind(fused: bool, top_k: int) -> None:
    """Over the whole vocabulary, signs of zeros among it, though its factors are NaN."""
    batch = Batch([1, 1, 0, 2], top_k)
    logits, found = batch.steered(fused)
    before = batch.logits.to(logits.dtype)
    untouched, tilted = batch.index[2], batch.index[3]
    assert torch.equal(bits(logits[untouched]), bits(before[untouched]))
    assert found.kl[2] == 0
    assert (logits[tilted, -2:] > -torch.inf).any(), "the mixture's vocabulary ends before"
    batch.tilt = replace(batch.tilt, factors=tuple(u.nan_to_num(0.0) for u in batch.tilt.factors))
    only_mixed = batch.steered(fused)[0][batch.index[:2]]
    assert torch.equal(bits(logits[batch.index[:2]]), bits(only_mixed))
    assert not only_mixed.isnan().any()


def test_launch_without_mixed_rows_accepts_members_of_no_rows() -> None:
    batch = Batch([2, 0, 2])
    assert of_first(batch.mixture, 0).members[0].shape[0] == 0
    logits, _ = batch.steered(fused=True)
    plain = batch.logits.clone()
    operations(True).steer(plain, batch.index, tilt=batch.tilt, kinds=batch.kinds)
    assert torch.equal(bits(logits), bits(plain))
