"""Selection by the kernel, against the reference."""

import torch

from value_heads.kernels import operations

from .cases import DEVICE, poisoned


def test_the_first_drawn_of_equal_ones() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, 1.0, 9.0]], device=DEVICE)
    counts = torch.tensor([3, 3, 2], device=DEVICE)
    found = operations(True).select(scores, counts, *torch.zeros(2, 3, device=DEVICE))
    assert found.tolist() == [1, 0, 1]


def test_it_is_the_reference_s() -> None:
    """Of groups of several sizes, by arg-max and softmax; beyond a group's size is poison."""
    torch.manual_seed(0)
    for groups, most in ((1, 1), (7, 5), (33, 16)):
        scores, counts = poisoned(groups, most), 1 + torch.arange(groups, device=DEVICE) % most
        scores[torch.arange(most, device=DEVICE) >= counts[:, None]] = torch.nan
        scores[:, 1:][torch.rand_like(scores[:, 1:]) < 0.2] = -torch.inf
        strengths = torch.tensor([0.0, 0.5, 3.0], device=DEVICE).repeat(groups)[:groups]
        uniforms = torch.rand(groups, device=DEVICE)
        found = operations(True).select(scores, counts, strengths, uniforms)
        expected = operations(False).select(
            scores.double(), counts, strengths.double(), uniforms.double()
        )
        assert found.dtype == torch.int64
        assert torch.equal(found, expected)


def test_the_law_of_softmax() -> None:
    """Over a grid of uniform numbers each candidate has its share."""
    scores = torch.tensor([0.3, -1.0, 0.9, -torch.inf], device=DEVICE)
    grid = 80
    found = operations(True).select(
        scores.repeat(grid, 1),
        torch.full((grid,), 4, device=DEVICE),
        torch.full((grid,), 0.7, device=DEVICE),
        (torch.arange(grid, device=DEVICE) + 0.5) / grid,
    )
    share = torch.bincount(found, minlength=4) / grid
    torch.testing.assert_close(share, (scores / 0.7).softmax(-1), rtol=0, atol=1 / grid)


def test_the_end_of_the_numbers_never_passes_the_last_candidate() -> None:
    scores = torch.tensor([[0.0, 0.0, -torch.inf]], device=DEVICE)
    counts, one = torch.tensor([3], device=DEVICE), torch.ones(1, device=DEVICE)
    for operation in (operations(True), operations(False)):
        assert operation.select(scores, counts, one, one).tolist() == [1]
