"""Mixing and tilting by the kernels, against the reference in float64."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from value_heads.kernels import BatchMixture, BatchTilt, Statistics, operations

from .cases import DEVICE, logits_of, poisoned

SIZES = [(1, 131, [0]), (4, 300, [3, 0, 1]), (40, 259, [*range(1, 35), 39])]
"""Rows of the batch, |V|, the rows steered: one, part of a block, part of a large one."""


@pytest.fixture(autouse=True)
def _nan_in_new_memory() -> Iterator[None]:
    """What a kernel leaves unwritten is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


def tilt_of(count: int, vocabulary: int, *, top_k: int = 0) -> BatchTilt:
    """Two heads: of two rewards and a rank that no block divides, and of fewer tokens."""
    wide = torch.randn(count, 2, 40, device=DEVICE), torch.randn(2, vocabulary, 40, device=DEVICE)
    small = torch.randn(count, 1, 8, device=DEVICE), poisoned(vocabulary - 7, 8, torch.bfloat16)
    limits = 1 + (top_k + torch.arange(count, device=DEVICE)) % vocabulary if top_k else None
    return BatchTilt(
        factors=(wide[0] / 4, small[0]),
        tokens=(wide[1], small[1][None]),
        top_k=limits,
        most=0 if limits is None else int(limits.max()),
    )


def mixture_of(count: int, vocabulary: int) -> BatchMixture:
    """Members of half precision, one of fewer tokens, weights of -1 and 0; those of 0 are NaN.

    The first, of no negative weight, has masked tokens.
    """
    members = (
        poisoned(count, vocabulary + 3, torch.bfloat16),
        poisoned(count, vocabulary - 2, torch.float16),
        poisoned(count, vocabulary),
    )
    weights = torch.tensor([[1.0, 0.5, -0.5, 0.0], [0.0, 1.0, 0.0, 0.25], [1.0, 0.0, 1.0, -1.0]])
    weights = weights.repeat(-(-count // 3), 1)[:count].contiguous().to(DEVICE)
    members[0][:, : vocabulary // 9] = -torch.inf
    for i, member in enumerate(members):
        member[weights[:, i + 1] == 0] = torch.nan
    return BatchMixture(members=members, weights=weights, vocabulary=vocabulary - 2)


def compare(
    logits: Tensor,
    rows: list[int],
    mixture: BatchMixture | None = None,
    tilt: BatchTilt | None = None,
    temperature: Tensor | None = None,
) -> Statistics:
    """Steer by both, and expect the same."""
    index, expected = torch.tensor(rows, device=DEVICE), logits.double()
    made = poisoned(*logits.shape)
    made.copy_(logits)
    steering = {"mixture": mixture, "tilt": tilt, "temperature": temperature}
    truth = operations(False).steer(expected, index, **steering)  # type: ignore[arg-type]
    found = operations(True).steer(made, index, **steering)  # type: ignore[arg-type]
    close = {"equal_nan": True, "rtol": 2e-5, "atol": 2e-5}
    torch.testing.assert_close(made.double(), expected, **close)
    others = [i for i in range(len(logits)) if i not in rows]
    assert torch.equal(made[others].view(torch.int32), logits[others].view(torch.int32))
    assert truth is not None
    assert found is not None
    for name, value, true in zip(Statistics._fields, found, truth, strict=True):
        assert value.dtype == torch.float32
        unbounded = true > 1e20  # an infinite KL
        assert (value[unbounded] > 1e20).all(), name
        torch.testing.assert_close(value.double()[~unbounded], true[~unbounded], **close)
    unmeasured = poisoned(*logits.shape)
    unmeasured.copy_(logits)
    assert operations(True).steer(unmeasured, index, **steering, measured=False) is None  # type: ignore[arg-type]
    torch.testing.assert_close(unmeasured, made, equal_nan=True, rtol=0, atol=0)
    return found


def temperatures(count: int) -> Tensor:
    return torch.tensor([0.0, 0.6, 1.7], device=DEVICE).repeat(count)[:count]


@pytest.mark.parametrize(("batch", "vocabulary", "rows"), SIZES)
class TestSizes:
    def test_tilt_kernel_matches_the_reference(
        self, batch: int, vocabulary: int, rows: list[int]
    ) -> None:
        for _ in range(2):  # what is left of the first must not show in the second
            tilt = tilt_of(len(rows), vocabulary)
            compare(logits_of(batch, vocabulary, rows), rows, tilt=tilt)

    def test_mix_kernel_matches_the_reference(
        self, batch: int, vocabulary: int, rows: list[int]
    ) -> None:
        rows = rows[:5]
        mixture = mixture_of(len(rows), vocabulary)
        found = compare(logits_of(batch, vocabulary, rows), rows, mixture)
        assert found.entropy.isfinite().all()

    def test_mix_and_tilt_kernel_at_a_temperature_matches_the_reference(
        self, batch: int, vocabulary: int, rows: list[int]
    ) -> None:
        compare(
            logits_of(batch, vocabulary, rows),
            rows,
            mixture_of(len(rows), vocabulary),
            tilt_of(len(rows), vocabulary),
            temperatures(len(rows)),
        )

    def test_top_k_tilt_kernel_matches_the_reference(
        self, batch: int, vocabulary: int, rows: list[int]
    ) -> None:
        rows = rows[:3]
        tilt = tilt_of(len(rows), vocabulary, top_k=20)
        logits = logits_of(batch, vocabulary, rows)
        # Among equal logits, as masked ones are, any of them may be among the k.
        logits[logits == -torch.inf] = -50 - 40 * torch.rand_like(logits[logits == -torch.inf])
        compare(logits, rows, tilt=tilt, temperature=temperatures(len(rows)))


def test_top_k_tilt_of_a_mixture_matches_the_reference() -> None:
    rows, logits = [2, 0], poisoned(3, 200)
    mixture = BatchMixture(
        members=(poisoned(2, 200),),
        weights=torch.tensor([[0.5, 0.5], [2.0, -1.0]], device=DEVICE),
        vocabulary=200,
    )
    compare(logits, rows, mixture, tilt_of(2, 200, top_k=7))


def test_masked_token_of_a_negative_weight_makes_the_kl_nan() -> None:
    logits, member = poisoned(1, 300), poisoned(1, 300)
    member[0, 7] = -torch.inf
    weights = torch.tensor([[2.0, -1.0]], device=DEVICE)
    found = compare(logits, [0], BatchMixture(members=(member,), weights=weights, vocabulary=300))
    assert found.kl.isnan()


def test_member_of_weight_one_is_copied_bit_for_bit() -> None:
    logits, member = poisoned(2, 300), poisoned(2, 300)
    weights = torch.tensor([[0.0, 1.0], [1.0, 0.0]], device=DEVICE)
    mixture = BatchMixture(members=(member,), weights=weights, vocabulary=300)
    own = logits[1].clone()
    found = operations(True).steer(logits, torch.tensor([0, 1], device=DEVICE), mixture=mixture)
    assert torch.equal(logits[0], member[0])
    assert torch.equal(logits[1], own)
    assert found is not None
    assert found.kl[1] == 0


def test_kl_is_nan_without_a_distribution() -> None:
    """Rows with +inf, with NaN or without any token have no distribution; other rows have one."""
    logits = poisoned(4, 300)
    logits[0, 17] = torch.inf
    logits[1, 250] = torch.nan
    logits[2] = -torch.inf
    found = compare(logits, [0, 1, 2, 3], tilt=tilt_of(4, 300))
    assert found.kl.isnan().tolist() == [True, True, True, False]


def test_leading_blocks_of_masked_tokens_match_the_reference() -> None:
    logits = poisoned(1, 2500)
    logits[:, :2300] = -torch.inf
    compare(logits, [0], mixture_of(1, 2500))
    compare(logits, [0], tilt=tilt_of(1, 2500))


def test_chunks_of_several_tiles_match_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """As there are where rows are many."""
    monkeypatch.setattr("value_heads.kernels.steer._PROGRAMS", 3)
    compare(logits_of(2, 1500, [1, 0]), [1, 0], tilt=tilt_of(2, 1500))
    compare(logits_of(2, 7000, [1, 0]), [1, 0], mixture_of(2, 7000))


def test_large_logits_do_not_overflow() -> None:
    logits = 1e4 * poisoned(2, 300)
    tilt = BatchTilt(
        factors=(torch.full((2, 1, 1), 300.0, device=DEVICE),),
        tokens=(torch.ones(1, 300, 1, device=DEVICE),),
    )
    index = torch.tensor([0, 1], device=DEVICE)
    found = operations(True).steer(logits, index, tilt=tilt)
    assert found is not None
    assert found.kl == pytest.approx([0.0, 0.0], abs=1e-2)
    assert found.log_sum_exp_after.isfinite().all()


def test_tilt_kernel_matches_worked_values() -> None:
    """One step: p = (.5, .3, .2) tilted by V = (0, 1, .5), at T = 1."""
    p, v = (0.5, 0.3, 0.2), (0.0, 1.0, 0.5)
    weights = [a * math.exp(b) for a, b in zip(p, v, strict=True)]
    pi = [w / sum(weights) for w in weights]
    logits = torch.tensor([p], device=DEVICE).log()
    tilt = BatchTilt(
        factors=(torch.ones(1, 1, 1, device=DEVICE),),
        tokens=(torch.tensor(v, device=DEVICE)[None, :, None],),
    )
    found = operations(True).steer(logits, torch.tensor([0], device=DEVICE), tilt=tilt)
    assert logits.softmax(-1)[0].tolist() == pytest.approx(pi, abs=1e-6)
    assert found is not None
    nats = sum(a * math.log(a / b) for a, b in zip(pi, p, strict=True))
    entropy = -sum(a * math.log(a) for a in pi)
    expected = [0.0, math.log(sum(weights)), nats, entropy]
    assert [x.item() for x in found] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("strength", [1e2, 1e4, 1e6, 1e8, 1e10])
@pytest.mark.parametrize("vocabulary", [300, 2500])  # in one chunk, in several
def test_the_kl_of_a_strong_tilt_keeps_its_precision(strength: float, vocabulary: int) -> None:
    """Its logits are large, their differences from the largest are not."""
    logits, index = poisoned(3, vocabulary), torch.arange(3, device=DEVICE)
    factors = strength * torch.randn(3, 1, 8, device=DEVICE)
    tilt = BatchTilt(factors=(factors,), tokens=(torch.randn(1, vocabulary, 8, device=DEVICE),))
    truth = operations(False).steer(logits.double(), index, tilt=tilt)
    found = operations(True).steer(logits.clone(), index, tilt=tilt)
    assert truth is not None
    assert found is not None
    torch.testing.assert_close(found.kl.double(), truth.kl, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.entropy.double(), truth.entropy, rtol=1e-4, atol=1e-4)
